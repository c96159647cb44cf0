"""In the open beyond this machine only where that was asked for."""

from serving.addresses import Address
from serving.errors import StartupError
from serving.settings import ServerSettings


def check_exposure(settings: ServerSettings, address: Address) -> None:
    """Raise StartupError for an address that strangers could reach, or read along, unless that is asked for."""
    if not (settings.insecure or settings.tls_cert or address.is_loopback):
        raise StartupError(
            f"{address.text}: can be reached from other machines, and would be in the open; give --tls-cert and "
            "--tls-key, or listen on localhost:PORT, or say --insecure"
        )
