"""TLS from files: certificate, key, and where clients must show one too, their authority. Read again when they change.

A changed file counts from the next handshake on; connections stay as they are. A pair that does not fit, as in the
middle of a renewal, is logged, and the one before it stays. Knows no grpc.
"""

import asyncio
import errno
import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from serving.errors import StartupError
from serving.pem import load_pair, reason
from serving.reasons import is_shortage
from serving.settings import ServerSettings
from serving.watched import WatchedFiles

log = structlog.get_logger(__name__)
_SOON: Final = timedelta(days=14)
_TELL_EVERY_S: Final = 86_400.0


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """Names of PEM files."""

    cert: Path
    key: Path
    client_ca: Path | None = None  # where given, only clients with a certificate of this authority are let in

    def paths(self) -> tuple[Path, ...]:
        """Return all that are named."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


def tls_files(settings: ServerSettings) -> TlsFiles | None:
    """Return the files that settings name; None where they ask for no TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)


def http_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context for HTTP that follows the files too. Raises StartupError where they cannot be used now."""
    watched = WatchedFiles(files.paths())
    watched.have_changed()
    newest = first = first_context(files)

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called at every handshake."""
        nonlocal newest
        if watched.have_changed():
            newest = next_context(files, watched) or newest
        connection.context = newest

    first.sni_callback = choose
    return first


def first_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context of the files as they are. Raises StartupError where they cannot be used."""
    try:
        return _context(files)
    except OSError as error:  # ssl.SSLError is one
        raise StartupError(f"{_names(files)}: {reason(error)}; wanted PEM files, a certificate and its key") from error


def next_context(files: TlsFiles, watched: WatchedFiles) -> ssl.SSLContext | None:
    """Return a context of changed files; None, and a line in the log, where they cannot be used.

    Where the machine was only short of something they are watched for as changed ones still.
    """
    try:
        context = _context(files)
    except OSError as error:
        log.error("certificate refused, the one before it stays", paths=_names(files), reason=reason(error))
        if is_shortage(error):
            watched.forget()
        return None
    log.info("certificate read", path=str(files.cert))
    tell_validity(files)
    return context


async def keep_telling_validity(files: TlsFiles) -> None:
    """Call `tell_validity` every day, until cancelled: a renewal that does not come changes no file."""
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        await asyncio.to_thread(tell_validity, files)


def tell_validity(files: TlsFiles) -> None:
    """Log where clients refuse the certificate by its dates, or soon will: nobody else on this side would notice."""
    from cryptography import x509  # only with TLS

    try:
        cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
    except (OSError, ValueError):  # whether it can be used is another's question
        return
    now, dates = datetime.now(UTC), {"begins": str(cert.not_valid_before_utc), "ends": str(cert.not_valid_after_utc)}
    if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
        log.error("certificate is not valid now, clients will refuse it", path=str(files.cert), **dates)
    elif cert.not_valid_after_utc - now < _SOON:
        log.warning("certificate ends soon", path=str(files.cert), **dates)


def _names(files: TlsFiles) -> str:
    return ", ".join(map(str, files.paths()))


def _context(files: TlsFiles) -> ssl.SSLContext:
    for path in files.paths():
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, on the loop, and is read only once
            raise OSError(errno.EINVAL, f"{path} is no regular file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, cert=files.cert, key=files.key)
    if files.client_ca:
        # A resumed session is not verified again: it would outlive its authority. TLS 1.2 resumes without tickets too.
        context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
