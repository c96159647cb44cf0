"""The TLS files as gRPC wants them."""

import grpc

from serving.tls import TlsFiles, first_context, next_context
from serving.watched import WatchedFiles

_Contents = tuple[bytes, bytes, bytes | None]  # key, certificate, clients' authority


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return gRPC's credentials, which follow the files. Raises StartupError where they cannot be used now.

    Where clients show a certificate, each handshake gets a configuration of its own, with which the library forgets
    the sessions of those before: a resumed one would outlive its certificate.
    """
    watched = WatchedFiles(files.paths())
    watched.have_changed()
    first_context(files)  # the library would only fail at a handshake, and say nothing
    newest = _read(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called at every handshake, from a thread of the library; None: no change."""
        nonlocal newest
        has_changed = watched.have_changed() and next_context(files, watched) is not None
        if has_changed:
            try:
                newest = _read(files)
            except OSError:  # gone since it was checked
                watched.forget()
                has_changed = False
        return _configuration(newest) if has_changed or files.client_ca else None

    return grpc.dynamic_ssl_server_credentials(_configuration(newest), fetch, files.client_ca is not None)  # type: ignore[arg-type]  # the stub forgets None


def _read(files: TlsFiles) -> _Contents:
    authority = files.client_ca.read_bytes() if files.client_ca else None
    return files.key.read_bytes(), files.cert.read_bytes(), authority


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    key, cert, authority = contents
    return grpc.ssl_server_certificate_configuration([(key, cert)], authority)
