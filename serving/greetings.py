"""Take TLS connections for a server of asyncio's, and count those whose handshake is under way among all of them.

asyncio's servers tell nobody of a connection before its handshake, which may take a minute: a thousand silent callers
held all descriptors of both doors for so long.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

_GREETING_S: Final = 10.0  # of a TLS handshake
_FAREWELL_S: Final = 1.0  # of its end
_PAUSE_S: Final = 0.1


class Greetings:
    """`start`, then `end`. `make` makes a protocol for a connection; `is_full` says whether there may be no more.

    `is_full` hears how many are here besides those that it knows of.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        context: ssl.SSLContext,
        *,
        make: Callable[[], asyncio.Protocol],
        is_full: Callable[[int], bool],
    ) -> None:
        self._listeners = listeners
        self._context = context
        self._make = make
        self._is_full = is_full
        self._under_way: set[asyncio.Task[None]] = set()
        self._accepting: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Take connections from now on."""
        for listener in self._listeners:
            listener.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(listener)))

    def end(self) -> None:
        """Take no more, and hang up on those that are not yet connections."""
        for task in (*self._accepting, *self._under_way):
            task.cancel()
        for listener in self._listeners:
            listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptors just now, or a caller who has gone again
                await asyncio.sleep(_PAUSE_S)
                continue
            if self._is_full(len(self._under_way)):
                connection.close()
                continue
            task = loop.create_task(self._greet(connection))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _greet(self, connection: socket.socket) -> None:
        with suppress(OSError):  # ssl's errors and timeouts are such
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=_GREETING_S,
                ssl_shutdown_timeout=_FAREWELL_S,
            )
