"""The TLS files as gRPC wants them."""

import grpc

from serving.tls import TlsFiles, first_context, next_context
from serving.watched import WatchedFiles


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return gRPC's credentials, which follow the files. Raises StartupError where they cannot be used now."""
    watched = WatchedFiles(files.paths())
    watched.have_changed()
    first_context(files)  # the library would only fail at a handshake, and say nothing
    first = _configuration(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called at every handshake, from a thread of the library; None: no change."""
        if not watched.have_changed() or next_context(files) is None:
            return None
        try:
            return _configuration(files)
        except OSError:  # gone since it was checked: when it is back, that is another change
            return None

    return grpc.dynamic_ssl_server_credentials(first, fetch, files.client_ca is not None)  # type: ignore[arg-type]  # the stub forgets None


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    authority = files.client_ca.read_bytes() if files.client_ca else None
    return grpc.ssl_server_certificate_configuration([(files.key.read_bytes(), files.cert.read_bytes())], authority)
