"""Wait in the event loop for what threads do."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

from serving.ticket import past_deadline

Result = TypeVar("Result")


class OneThread:
    """Has work done in a thread, one piece at a time: also where callers go, for a thread goes on without its own."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Return what the work gives, or raise what it raises, in its turn."""
        async with self._turn:
            working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
            try:
                return await asyncio.shield(working)
            finally:
                await asyncio.wait({working})
                if not working.cancelled():
                    working.exception()  # or the log would have it, where the caller has gone


async def all_done(futures: Sequence[Future[Any]], *, deadline: float | None = None) -> None:
    """Wait for all, or cancel them where this is cancelled. One call into the loop; wrapped futures take several.

    `deadline` is a time of time.monotonic, in seconds. Raises DeadlineExceededError when it has passed: gRPC ends a
    late call by itself, other doors' deadlines are ours alone.
    """
    loop, left = asyncio.get_running_loop(), count(len(futures) - 1, -1)
    is_done = loop.create_future()

    def on_done(_: Future[Any]) -> None:
        if next(left) == 0:  # one step of the interpreter: several threads may be here
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(_set, is_done)

    for future in futures:
        future.add_done_callback(on_done)
    try:
        async with asyncio.timeout_at(deadline):
            await is_done
    except BaseException as error:
        for future in futures:
            future.cancel()
        if isinstance(error, TimeoutError):
            raise past_deadline() from error
        raise


def _set(event: "asyncio.Future[None]") -> None:
    if not event.done():
        event.set_result(None)
