"""How a client reaches a server that is closed to strangers: TLS, a certificate of its own, a token."""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer

from serving.addresses import Address, is_here
from serving.errors import SettingsError, StartupError
from serving.pem import load_pair, reason

Options = Sequence[tuple[str, str | int]]
_NAMES: Final = re.compile(r"[a-z0-9-]+:[^0-9]|(dns|ipv[46]|vsock):")  # of gRPC: naming.md; dns:///host and the like


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a client shows and trusts; all empty: a server without TLS and tokens."""

    tls_ca: Annotated[
        Path | None, typer.Option(help="Use TLS and trust this PEM authority.", envvar="CALOTYPE_TLS_CA")
    ] = None
    tls_name: Annotated[
        str, typer.Option(help="Expect this name in the certificate; empty: the host.", envvar="CALOTYPE_TLS_NAME")
    ] = ""
    tls_cert: Annotated[
        Path | None, typer.Option(help="Show this PEM certificate.", envvar="CALOTYPE_CLIENT_TLS_CERT")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="Use this PEM key of it.", envvar="CALOTYPE_CLIENT_TLS_KEY")] = (
        None
    )
    token: Annotated[str, typer.Option(help="Show this token; better in the variable.", envvar="CALOTYPE_TOKEN")] = ""

    def __post_init__(self) -> None:
        """Refuse half a TLS, and a token that no header can carry."""
        if (self.tls_cert is None) != (self.tls_key is None) or ((self.tls_cert or self.tls_name) and not self.tls_ca):
            raise SettingsError("TLS wants --tls-ca; a client's certificate both --tls-cert and --tls-key")
        if not (self.token.isascii() and self.token.isprintable()):
            raise SettingsError("--token: wanted what `serving token` printed, found other characters")

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, address: str, options: Options = ()) -> grpc.Channel:
        """Return a channel that connects at the first call. Raises SettingsError where a file cannot be read."""
        credentials, options = self._credentials(), _directly(address, options)
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=[*options, *self._name_option()])

    def async_channel(self, address: str, options: Options = ()) -> grpc.aio.Channel:
        """Do the same for asyncio, in the running loop."""
        credentials, options = self._credentials(), _directly(address, options)
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=[*options, *self._name_option()])

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the same for HTTP; None without TLS. Raises SettingsError where a file is not what it should be."""
        if self.tls_ca is None:
            return None
        if self.tls_name:
            raise SettingsError("--tls-name: over HTTP the certificate must have the host's own name; leave it out")
        return self._context()

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert and self.tls_key:
                load_pair(context, cert=self.tls_cert, key=self.tls_key)
        except OSError as error:  # ssl's own errors are OSErrors
            names = ", ".join(str(path) for path in (self.tls_ca, self.tls_cert, self.tls_key) if path)
            raise SettingsError(f"{names}: {reason(error)}; wanted PEM files") from error
        return context

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if self.tls_ca is None:
            return None
        self._context()  # gRPC would blame the server for files that it cannot use
        own_key, own_cert = (path.read_bytes() if path else None for path in (self.tls_key, self.tls_cert))
        return grpc.ssl_channel_credentials(self.tls_ca.read_bytes(), own_key, own_cert)

    def _name_option(self) -> Options:
        return [("grpc.ssl_target_name_override", self.tls_name)] if self.tls_name else []


def _directly(address: str, options: Options) -> Options:
    """Return options without a proxy for a server on this machine: the environment's would look for it on its own.

    Raises SettingsError where a port is missing or none: gRPC would call 443, or what 16 bits leave of it.
    """
    try:
        if not _NAMES.match(address):
            Address.parse(address)
    except StartupError as error:
        raise SettingsError(str(error)) from error
    return [*options, ("grpc.enable_http_proxy", 0)] if is_here(address) else options


OPEN: Final = Access()
