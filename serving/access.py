"""In the open beyond this machine only where that was asked for."""

from ipaddress import ip_address
from typing import Final

from serving.errors import StartupError
from serving.settings import ServerSettings

_LOCAL_SCHEMES: Final = ("unix:", "unix-abstract:")


def check_exposure(settings: ServerSettings, *, address: str) -> None:
    """Raise StartupError for an address that strangers could reach, or read along, unless that is asked for.

    Also for one without a port, of which the host cannot be told. An empty address is not listened on.
    """
    if address and not address.startswith(_LOCAL_SCHEMES) and not address.rpartition(":")[2].isdecimal():
        raise StartupError(f"{address}: found no port, wanted host:port")
    if address and not (settings.insecure or settings.tls_cert or is_loopback(address)):
        raise StartupError(
            f"{address}: can be reached from other machines, and would be in the open; give --tls-cert and --tls-key, "
            "or listen on localhost:PORT, or say --insecure"
        )


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches an address of gRPC's forms: host:port, [v6]:port, ipv4:…, unix:…"""
    if address.startswith(_LOCAL_SCHEMES):
        return True
    places = address.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:").lstrip("/").split(",")
    return all(_is_loopback_host(place.rpartition(":")[0].strip("[]")) for place in places)


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
