"""Answer the requests of a stream side by side, and in their order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Final, TypeVar

_WINDOW: Final = 8  # requests of one stream that wait for their turn; one more is answered, and one read
_WEIGHT: Final = 32  # pictures of one stream that are under way, where these are several requests: it waits by itself

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def in_order(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    *,
    weigh: Callable[[Request], int],
) -> AsyncGenerator[Answer]:
    """Yield the answers of a stream in the order of its requests, while later ones are already under way.

    `weigh` tells how many pictures a request brings: a stream of large ones is read no faster than they are answered,
    or it would be refused for what it sent itself. Raises what an answer, or the reading of a request, raised: in its
    turn, after the answers before it.
    """
    window: asyncio.Queue[asyncio.Task[Answer | Exception] | Exception | None] = asyncio.Queue(_WINDOW)
    tasks: dict[asyncio.Task[Answer | Exception], int] = {}  # under way, with their weight

    async def read() -> None:
        try:
            async for request in requests:
                weight = weigh(request)
                while tasks and sum(tasks.values()) + weight > _WEIGHT:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(_outcome(answer, request))
                del request  # or its pictures would be in memory once more for as long as they wait
                tasks[task] = weight
                task.add_done_callback(tasks.pop)
                await window.put(task)
        except Exception as error:  # noqa: BLE001 -- raised below
            await window.put(error)
        await window.put(None)

    reader = asyncio.create_task(read())
    try:
        while (entry := await window.get()) is not None:
            outcome = entry if isinstance(entry, Exception) else await entry
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
    finally:
        for pending in (reader, *tasks):
            pending.cancel()


async def _outcome(answer: Callable[[Request], Awaitable[Answer]], request: Request) -> Answer | Exception:
    """Return the error instead of raising it: a stream that ends early asks nobody for the rest."""
    answering = answer(request)
    del request  # as above
    try:
        return await answering
    except Exception as error:  # noqa: BLE001 -- raised by who asks
        return error
