"""Answer the requests of a stream side by side, and in their order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Final, TypeVar

_WINDOW: Final = 8  # requests of one stream that wait for their turn; one more is answered, and one read

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def in_order(
    requests: AsyncIterable[Request], answer: Callable[[Request], Coroutine[None, None, Answer]]
) -> AsyncGenerator[Answer]:
    """Yield the answers of a stream in the order of its requests, while later ones are already under way.

    Raises what an answer, or the reading of a request, raised: in its turn, after the answers before it.
    """
    window: asyncio.Queue[asyncio.Task[Answer | Exception] | Exception | None] = asyncio.Queue(_WINDOW)
    tasks: set[asyncio.Task[Answer | Exception]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                task = asyncio.create_task(_outcome(answer, request))
                del request  # or its pictures would be in memory once more for as long as they wait
                tasks.add(task)
                task.add_done_callback(tasks.discard)
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


async def _outcome(answer: Callable[[Request], Coroutine[None, None, Answer]], request: Request) -> Answer | Exception:
    """Return the error instead of raising it: a stream that ends early asks nobody for the rest."""
    answering = answer(request)
    del request  # as above
    try:
        return await answering
    except Exception as error:  # noqa: BLE001 -- raised by who asks
        return error
