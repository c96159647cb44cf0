"""Is an address to be had? Asked before gRPC, which takes half of one, or another server's, in silence."""

import errno
import socket
from contextlib import suppress
from typing import Final

from serving.errors import StartupError

_MOST_PORT: Final = 65_535
_NEXT_STEP: Final = "choose another --address or --http-address"


def check_free(address: str, *, is_shared: bool) -> None:
    """Raise StartupError where another server listens at host:port or unix:path, or the port is none.

    `is_shared`: with other processes, by SO_REUSEPORT.
    """
    if address.startswith("unix"):
        if _is_answered(address):  # the library would take its file away
            raise StartupError(f"{address}: another server listens there; {_NEXT_STEP}")
        return
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= _MOST_PORT):  # it would take what 16 bits leave of it
        raise StartupError(f"{address}: cannot listen there, a port is 0..{_MOST_PORT}; {_NEXT_STEP}")
    if int(port) and not is_shared:
        _check_every(host.strip("[]"), int(port), address=address)


def _is_answered(address: str) -> bool:
    """Say whether a server listens at unix:path, unix:///path or unix-abstract:name; one that has died does not."""
    scheme, _, name = address.partition(":")
    path = "\0" + name if scheme == "unix-abstract" else name.removeprefix("//")
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(path)
        return True
    return False


def _check_every(host: str, port: int, *, address: str) -> None:
    """Look at all that a name stands for: of localhost, the library is content with ::1 where 127.0.0.1 is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return  # an address of gRPC's own forms, or none: it says so itself
    for family, _, _, _, place in found:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closing is no obstacle
                probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartupError(
                    f"{address}: cannot listen there, {place[0]} is taken by another server; {_NEXT_STEP}"
                ) from error
