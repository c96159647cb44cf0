"""How the calls of both doors end: no new ones, those under way finished, within a time that is given.

For a second calls are taken whose client could not know. What is on its way in by then, over a slow network perhaps,
has the whole time to arrive; then what open streams still send is refused, and what is queued is finished.
"""

import asyncio
from typing import Final

import grpc

from serving.arrivals import Arrivals
from serving.catalogue import Catalogue
from serving.dispatcher import Dispatcher
from serving.http_body import BodyReader
from serving.http_server import HttpServer

FLUSH_S: Final = 0.5  # for answers that are written but not yet sent, when only watchers are still connected
_STRAGGLE_S: Final = 1.0  # for calls that were sent before their client could know that this server stops
_NEVER_S: Final = 1e7


class Drain:
    """Ends both doors of a server, once."""

    def __init__(
        self,
        server: grpc.aio.Server,
        http: HttpServer,
        *,
        arrivals: Arrivals,
        bodies: BodyReader,
        dispatcher: Dispatcher,
        catalogue: Catalogue,
    ) -> None:
        self._grpc = server
        self._http = http
        self._arrivals = arrivals
        self._bodies = bodies
        self._dispatcher = dispatcher
        self._catalogue = catalogue

    async def finish(self, until: float) -> None:
        """Take no more calls, and end those that are there: when they are done, or at `until`, in the loop's time.

        All waiting is done here. Where two stops of grpc.aio (1.85) time out, the one to end first destroys the server,
        and the other then cancels the calls of no server: of exits with --drain-s 0 one in thirty was a segfault.
        """
        self._http.stop_accepting()
        stopping = asyncio.create_task(self._grpc.stop(_NEVER_S))
        ended = asyncio.create_task(self._http.ended())
        await asyncio.wait({stopping, ended}, timeout=min(_STRAGGLE_S, left_s(until)))
        for uploads in (self._bodies.idle, self._arrivals.idle):
            await _wait(uploads, timeout_s=left_s(until - FLUSH_S))
        self._catalogue.start_draining()
        self._bodies.give_up()
        await _wait(self._dispatcher.idle, timeout_s=left_s(until))
        await asyncio.wait({stopping, ended}, timeout=min(FLUSH_S, left_s(until)))
        if not stopping.done():  # health watchers would hold it for all of the time
            await self._grpc.stop(None)  # at once, before anything else can happen
        await stopping
        await self._http.stop()
        await ended


async def _wait(event: asyncio.Event, *, timeout_s: float) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting}, timeout=timeout_s)
    waiting.cancel()


def left_s(until: float) -> float:
    """Return how many seconds there are until a time of the loop, 0 where it has passed."""
    return max(0.0, until - asyncio.get_running_loop().time())
