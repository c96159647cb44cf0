"""PEM files for TLS, a server's or a client's, and what is wrong with them in words."""

import ssl
from pathlib import Path


def load_pair(context: ssl.SSLContext, *, cert: Path, key: Path) -> None:
    """Let a context show a certificate. Raises OSError, ssl.SSLError among them; never asks for a password."""
    context.load_cert_chain(cert, key, password=_no_password)


def reason(error: OSError) -> str:
    """Return why files could not be used."""
    return getattr(error, "reason", None) or error.strerror or " ".join(map(str, error.args))


def _no_password() -> str:
    raise ssl.SSLError("the key has a password, wanted one without")
