"""Is an address to be had? Asked before gRPC, which takes half of one, or another server's, in silence.

HTTP's is taken here.
"""

import errno
import socket
from contextlib import ExitStack, suppress
from typing import Final

from serving.addresses import Address
from serving.errors import StartupError

_NEXT_STEP: Final = "choose another --address or --http-address"


def check_free(address: Address, *, is_shared: bool) -> None:
    """Raise StartupError where another server listens there, or the host is none.

    `is_shared`: with other processes, by SO_REUSEPORT.
    """
    if address.is_file:
        if _is_answered(address.text):  # the library would take its file away
            raise StartupError(f"{address.text}: another server listens there; {_NEXT_STEP}")
        return
    places = address.places()
    if address.port and not is_shared:
        for family, place in places:  # of localhost, the library is content with ::1 where 127.0.0.1 is taken
            _check_place(family, place, address=address)


def listen(address: Address, *, is_shared: bool, backlog: int) -> list[socket.socket]:
    """Listen at every place of a host that this machine has, on one port, as gRPC does. Raises StartupError."""
    sockets: list[socket.socket] = []
    port, refused = address.port, OSError()
    with ExitStack() as stack:
        for family, place in address.places():
            at = (place[0], port, *place[2:])
            both = place[0] == "::" and socket.has_dualstack_ipv6()  # any address is any of IPv4 too
            try:
                one = socket.create_server(
                    at,
                    family=family,
                    backlog=backlog,
                    reuse_port=is_shared,
                    dualstack_ipv6=both,
                )
            except OSError as error:
                refused = error
                if address.port and error.errno != errno.EADDRNOTAVAIL:  # as where there is no IPv6
                    break
            else:
                sockets.append(stack.enter_context(one))
                port = one.getsockname()[1]
        else:
            if sockets:
                stack.pop_all()
                return sockets
    found = "another server listens there" if refused.errno == errno.EADDRINUSE else refused.strerror
    raise StartupError(
        f"{address.text}: cannot listen there for HTTP, {found}; choose another --http-address, or off"
    ) from refused


def _is_answered(address: str) -> bool:
    """Say whether a server listens at unix:path, unix:///path or unix-abstract:name; one that has died does not."""
    scheme, _, name = address.partition(":")
    path = "\0" + name if scheme == "unix-abstract" else name.removeprefix("//")
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(path)
        return True
    return False


def _check_place(family: int, place: tuple[str | int, ...], *, address: Address) -> None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closing is no obstacle
            probe.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"{address.text}: cannot listen there, {place[0]} is taken by another server; {_NEXT_STEP}"
            ) from error
