"""Listen for HTTP in the event loop of the gRPC server: uvicorn, with sockets and signals left to us."""

import asyncio
import contextlib
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Final

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.addresses import Address
from serving.greetings import Greetings
from serving.listening import listen
from serving.tls import TlsFiles, http_context

_BACKLOG: Final = 512
OWED_S: Final = 20
SURPLUS: Final = "surplus"  # in the state of a request: its connection is one too many
_TOLD: Final = 32
_CRUMB_BYTES: Final = 64  # the least that a chunk may have on average
_CHUNKS: Final = 128  # more than any client's odd ones in one piece
_CHUNK_HEAD: Final = re.compile(rb"\r\n[0-9A-Fa-f]{1,8}[ \t]*(?:;[^\r\n]*)?(?=\r\n)")
_KEEP_ALIVE_S: Final = 75  # longer than the usual 60 s of balancers, which must be the ones to close


class HttpServer:
    """One for both families of sockets, or none without an address. `start`, then `stop`; `port` is the bound one."""

    def __init__(
        self,
        app: ASGIApp,
        address: Address | None,
        *,
        drain_s: float,
        max_connections: int,
        files: TlsFiles | None = None,
        is_shared: bool = False,
    ) -> None:
        self._app = app
        self._address = address
        self._files = files
        self._is_shared = is_shared  # with other processes, by SO_REUSEPORT
        self._drain_s = drain_s
        self._max_connections = max_connections
        self._uvicorn: _Uvicorn | None = None
        self._greetings: Greetings | None = None
        self._running: asyncio.Task[None] | None = None
        self.port = 0  # while it is off

    def start(self) -> None:
        """Bind and serve from now on. Raises StartupError where the address is not to be had."""
        if self._address is None:
            return
        context = http_context(self._files) if self._files else None
        listeners = listen(self._address, is_shared=self._is_shared, backlog=_BACKLOG)
        self.port = listeners[0].getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # strangers' broken requests are no news
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            limit_concurrency=self._max_connections + 1 + _TOLD,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, math.ceil(self._drain_s)),
        )
        config.load()
        self._uvicorn = _Uvicorn(config)
        if context is not None:
            make = partial(_Protocol, config, self._uvicorn.server_state, {})
            connections, most = self._uvicorn.server_state.connections, self._max_connections + 1 + _TOLD
            self._greetings = Greetings(
                listeners, context, make=make, is_full=lambda greeting: len(connections) + greeting >= most
            )
            self._greetings.start()
        self._running = asyncio.create_task(self._uvicorn.serve(sockets=[] if context else listeners))

    def stop_accepting(self) -> None:
        """Take no more connections; those without a request close, the others after their answer."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        if self._greetings is not None:
            self._greetings.end()

    async def ended(self) -> None:
        """Wait, after `stop_accepting`, until every request is answered."""
        if self._running is not None:
            await asyncio.wait({self._running})

    async def stop(self) -> None:
        """End, and hang up on whoever is left."""
        self.stop_accepting()
        if self._uvicorn is None or self._running is None:
            return
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()  # else a caller who does not read its answers keeps this process alive
        await self._running


class _Protocol(H11Protocol):
    """uvicorn's, which waits for ever for a request's head, and for a caller to take its answers.

    A connection that owes one of them for longer than OWED_S is closed: else a few hundred silent ones would use up
    `max_connections`, and health with it. The body of a request that is being answered is `http_body`'s business.
    Of the connections beyond the limit only _TOLD are kept, to be told so: more would use up the descriptors of both
    doors. A body in crumbs is cut off: a chunk takes 2 µs to parse, on the loop of both doors.
    """

    _owed: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if self.limit_concurrency is not None:
            beyond = len(self.connections) - (self.limit_concurrency - 1 - _TOLD)
            if beyond > _TOLD:
                transport.abort()
            self.app_state = {**self.app_state, SURPLUS: beyond > 0}
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._is_crumbs(data):
            self.transport.abort()
            return
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, where that can still be said; what its request's application says is not heard.

        uvicorn (0.54) lets both speak, and wants a body after HEAD: tracebacks, for anyone who sends half a chunk.
        """
        is_under_way = self.cycle is not None and not self.cycle.response_complete
        if is_under_way:
            self.cycle.disconnected = True
        is_bodiless = is_under_way and self.scope["method"] == "HEAD"
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not is_bodiless:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # it had its time: see `http_entrance`
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(OWED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._forget_unread()

    def _is_crumbs(self, data: bytes) -> bool:
        """Say whether chunked data has more chunks than those of a sensible size would be.

        Line ends alone do not tell: a dark bitmap is full of them.
        """
        if self.conn.their_state is h11.IDLE:
            is_chunked = b"transfer-encoding" in data[: data.find(b"\r\n\r\n")].lower()
        else:
            is_chunked = any(name == b"transfer-encoding" for name, _ in self.headers or ())
        most = _CHUNKS + len(data) // _CRUMB_BYTES
        return is_chunked and data.count(b"\r\n") > most and len(_CHUNK_HEAD.findall(data)) > most

    def _watch(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._owed = self._owed or self.loop.call_later(OWED_S, self.transport.close)
        else:
            self._forget()

    def _forget(self) -> None:
        if self._owed:
            self._owed.cancel()
            self._owed = None

    def _forget_unread(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGTERM and SIGINT to the server's own drain."""
        yield
