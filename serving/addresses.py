"""Where a server listens: host:port, [v6]:port, or a socket's file as unix:path. Read once, the same for both doors."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self, cast

from serving.errors import StartupError

_FILE_SCHEMES: Final = ("unix:", "unix-abstract:")
_MOST_PORT: Final = 65_535

Sockaddr = tuple[str, int] | tuple[str, int, int, int]  # of IPv4, and of IPv6 with flow and scope
Place = tuple[int, Sockaddr]  # with its family


@dataclass(frozen=True, kw_only=True)
class Address:
    """A place to listen at, as it was written. A socket's file has no host."""

    text: str
    host: str = ""  # without brackets
    port: int = 0  # 0: any that is free

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address. Raises StartupError; gRPC would take what 16 bits leave of a port."""
        if text in _FILE_SCHEMES:
            raise StartupError(f"{text}: found no path, wanted one, such as {text}/run/calotype.sock")
        if text.startswith(_FILE_SCHEMES):
            return cls(text=text)
        host, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdigit()):
            raise StartupError(f"{text}: found no port, wanted host:port")
        if int(port) > _MOST_PORT:
            raise StartupError(f"{text}: found port {port}, wanted 0..{_MOST_PORT}")
        if not host:
            raise StartupError(f"{text}: found no host, wanted host:port, such as localhost:{port}")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise StartupError(f"{text}: found several colons, wanted [host]:port for IPv6")
        return cls(text=text, host=host.removeprefix("[").removesuffix("]"), port=int(port))

    @property
    def is_file(self) -> bool:
        """Whether it is a socket's file."""
        return not self.host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return self.is_file or self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    def beside(self, text: str) -> "Address":
        """Read another one; ":port" is on this one's host, or on this machine's. Raises StartupError."""
        if text.startswith(":"):
            text = f"127.0.0.1{text}" if self.is_file else f"{self.text.rpartition(':')[0]}{text}"
        return Address.parse(text)

    def places(self) -> list[Place]:
        """Return every place that the host stands for: of localhost usually two. Raises StartupError where none."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no name of a host"
            raise StartupError(f"{self.text}: {reason}; wanted a host of this machine") from error
        return list(dict.fromkeys((family, cast(Sockaddr, place)) for family, _, _, _, place in found))


def is_here(text: str) -> bool:
    """Say whether a client that is given this address stays on this machine."""
    try:
        return Address.parse(text).is_loopback
    except StartupError:  # a name of gRPC's, such as dns:///…
        return False
