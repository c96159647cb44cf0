"""Bearer tokens: who may ask, and how often. One gate for every door; knows neither grpc nor HTTP.

A tokens file has one `name:sha256[:requests_per_s]` a line; blank lines and those that begin with # are skipped. A name
may stand twice while its token is being replaced. A changed file counts from the next request on; a bad one is logged,
and the tokens before it stay.

Plain SHA-256 is right here: a token is 256 random bits, so there is no dictionary that a slow hash would slow down, and
a slow hash at every request would be a way to keep the server busy.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from bundle.errors import BundleError
from bundle.files import read_file
from serving.errors import RateLimitedError, SettingsError, TokensFileError, UnauthenticatedError
from serving.metrics import Metrics
from serving.reasons import is_shortage
from serving.watched import WatchedFiles

_LINE: Final = re.compile(r"(?P<name>[\w.-]{1,64}):(?P<digest>[0-9a-f]{64})(?::(?P<rate>\d{1,6}(?:\.\d{1,6})?))?", re.A)
_NAME: Final = "the name of up to 64 letters, digits, '.', '_', '-'"
_MAX_FILE_BYTES: Final = 2**20
_TOKEN_BYTES: Final = 32
_MAX_HEADER_CHARACTERS: Final = 512  # nothing longer is hashed
_REFUSAL: Final = "wanted `authorization: Bearer TOKEN` with a token of this server; ask its operator for one"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenLine:
    """One line of a tokens file."""

    name: str
    digest: str  # sha256 of the token, 64 hex digits
    requests_per_s: float = 0.0  # 0: no limit

    def __str__(self) -> str:
        """Return the line as it stands in the file."""
        rate = f":{self.requests_per_s:.6f}".rstrip("0").rstrip(".") if self.requests_per_s else ""
        return f"{self.name}:{self.digest}{rate}"


def new_token(name: str, *, requests_per_s: float = 0.0) -> tuple[str, TokenLine]:
    """Make a random token and its line. Raises SettingsError where no line can have that name."""
    token = f"calotype_{secrets.token_urlsafe(_TOKEN_BYTES)}"  # the prefix lets secret scanners find lost ones
    line = TokenLine(name=name, digest=_digest(token), requests_per_s=requests_per_s)
    try:
        parsed = _parse_line(str(line), place=repr(name))
    except TokensFileError as error:
        raise SettingsError(f"{name!r}: wanted {_NAME}") from error
    if parsed.requests_per_s == 0 < requests_per_s:
        raise SettingsError(f"{name}: found {requests_per_s:g} requests/s, wanted 0 or at least 0.000001")
    return token, line


def read_tokens(path: Path) -> tuple[TokenLine, ...]:
    """Read a tokens file. Raises TokensFileError with the line's number, never with its content."""
    try:
        text = read_file(path, max_bytes=_MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise TokensFileError(f"{path}: {error.strerror}; wanted lines of `serving token NAME`") from error
    except BundleError as error:
        raise TokensFileError(f"{path}: wanted a file of tokens, of at most {_MAX_FILE_BYTES:,} bytes") from error
    except UnicodeDecodeError as error:
        raise TokensFileError(f"{path}: found no UTF-8, wanted lines of `serving token NAME`") from error
    numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    lines = tuple(_parse_line(line, place=f"{path}:{number}") for number, line in numbered if line and line[0] != "#")
    if not lines:  # more often a copy cut off than a wish to lock everybody out
        raise TokensFileError(f"{path}: found no token, wanted at least one; make one with `serving token NAME`")
    if len({line.digest for line in lines}) < len(lines):
        raise TokensFileError(f"{path}: found one token in two lines; make another with `serving token NAME`")
    return lines


class Gate:
    """Lets in who holds a token. For one event loop: not to be shared by threads."""

    def __init__(self, path: Path, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._turned_away = metrics.turned_away
        self._clock = clock
        self._files = WatchedFiles([path])
        self._buckets: dict[TokenLine, _Bucket] = {}

    def open(self) -> None:
        """Read the file for the first time. Raises TokensFileError."""
        self._files.have_changed()
        self._take(read_tokens(self._path))

    def authenticate(self, authorization: str | None) -> str:
        """Return the token's name, without counting a request. Raises UnauthenticatedError, the same for all."""
        return self._find(authorization).name

    def check(self, authorization: str | None) -> str:
        """Return the token's name and count one request. Raises UnauthenticatedError, RateLimitedError."""
        line = self._find(authorization)
        bucket = self._buckets[line]
        if (retry_after_s := bucket.take(self._clock())) > 0:
            self._turned_away.labels("rate").inc()
            raise RateLimitedError(
                f"{line.name}: more than {line.requests_per_s:g} requests/s; wait, or ask the operator for more",
                retry_after_s=retry_after_s,
            )
        return line.name

    def _find(self, authorization: str | None) -> TokenLine:
        self._reload()
        scheme, _, token = (authorization or "")[:_MAX_HEADER_CHARACTERS].partition(" ")
        digest, found = _digest(token.strip()), None
        for line in self._buckets:  # all of them, so that the time tells nothing
            if hmac.compare_digest(line.digest, digest):
                found = line
        if found is None or scheme.lower() != "bearer":
            self._turned_away.labels("token").inc()
            raise UnauthenticatedError(_REFUSAL)
        return found

    def _reload(self) -> None:
        if not self._files.have_changed():
            return
        try:
            self._take(read_tokens(self._path))
        except TokensFileError as error:
            log.error("tokens file refused, the tokens before it stay", reason=str(error))
            if is_shortage(error):
                self._files.forget()
            return
        log.info("tokens read", count=len(self._buckets))

    def _take(self, lines: tuple[TokenLine, ...]) -> None:
        now = self._clock()
        self._buckets = {line: self._buckets.get(line) or _Bucket(line.requests_per_s, now) for line in lines}


class _Bucket:
    """A token bucket that holds one second's requests, at least one.

    Our own: the libraries that were looked at count in windows or wait for the caller's turn, and none says in one
    step, without a lock or an await, how long a refused caller should stay away.
    """

    def __init__(self, requests_per_s: float, now: float) -> None:
        self._rate = requests_per_s
        self._level = max(1.0, requests_per_s)
        self._filled = now

    def take(self, now: float) -> float:
        """Take one request and return 0.0, or return the seconds after which there will be one."""
        if not self._rate:
            return 0.0
        self._level = min(max(1.0, self._rate), self._level + (now - self._filled) * self._rate)
        self._filled = now
        if self._level < 1:
            return (1 - self._level) / self._rate
        self._level -= 1
        return 0.0


def _parse_line(line: str, *, place: str) -> TokenLine:
    found = _LINE.fullmatch(line)
    if found is None:
        raise TokensFileError(f"{place}: wanted name:sha256[:requests_per_s], {_NAME}")
    return TokenLine(name=found["name"], digest=found["digest"], requests_per_s=float(found["rate"] or 0))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", errors="surrogateescape")).hexdigest()
