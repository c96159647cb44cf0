"""Look at the models folder again and again, and let what has changed there reach the catalogue and health.

It lists names and looks at file times instead of asking for notifications: these do not cross network drives, where
models often lie, nor the renamed links of a mounted ConfigMap; a look costs one listing and a few stats a version.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import structlog

from serving.catalogue import Catalogue
from serving.scheduling import give_way

log = structlog.get_logger(__name__)


class Watcher:
    """`start`, then `stop`; the first look is at once, also where every_s is 0 and it is the only one."""

    def __init__(self, catalogue: Catalogue, publish: Callable[[], None], *, every_s: float, drain_s: float) -> None:
        self._catalogue = catalogue
        self._publish = publish
        self._every_s = every_s
        self._drain_s = drain_s
        self._stopping = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models", initializer=give_way)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._look_on())

    async def stop(self) -> None:
        """Look no more; returns when a look that is under way has ended."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Run it in a thread that takes the cores from nobody who answers."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _look_on(self) -> None:
        refreshing = asyncio.create_task(self._refresh(waits_for_whole=False))
        letting_go: asyncio.Task[None] | None = None
        while self._every_s and not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._every_s)
            if refreshing.done() and not self._stopping.is_set():
                refreshing = asyncio.create_task(self._refresh(waits_for_whole=True))
            elif not refreshing.done():
                await self._try(partial(asyncio.to_thread, self._catalogue.follow_pins))
                if letting_go is None or letting_go.done():  # else the folder does not answer
                    letting_go = asyncio.create_task(self._try(partial(asyncio.to_thread, self._catalogue.let_go)))
        await refreshing
        if letting_go is not None:
            await letting_go

    async def _refresh(self, *, waits_for_whole: bool) -> None:
        look = partial(self._catalogue.refresh, waits_for_whole=waits_for_whole, drain_s=self._drain_s)
        await self._try(partial(self._in_thread, look))
        with _logged():
            await self._in_thread(partial(self._catalogue.release, self._drain_s))

    async def _try(self, look: Callable[[], Awaitable[None]]) -> None:
        with _logged():
            await look()
        self._publish()  # before old versions are closed: their last requests may take long


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("looking at the models folder failed; it is tried again")
