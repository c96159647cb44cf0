"""Which versions the operator wants: pins, shadows, and how many newest ones stay loaded. Text in, frozen values out.

A pin says which version answers requests that name none. Pins stand in the settings, or in a file that is read again at
every look at the models folder: rollback without a restart where that folder is read-only. Knows no models.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bundle.contract import NAME_PATTERN, VERSION_PATTERN
from bundle.errors import BundleError
from bundle.files import read_file
from serving.errors import SettingsError

NEWEST: Final = 0  # as a shadow's version: the newest ready one, where a pinned one answers
_MAX_PINS_BYTES: Final = 64 * 2**10
_PIN: Final = re.compile(f"({NAME_PATTERN})=({VERSION_PATTERN})")
_SHADOW: Final = re.compile(rf"({NAME_PATTERN})=({VERSION_PATTERN}|newest):([01]|[01]?\.[0-9]{{1,6}})")


@dataclass(frozen=True, kw_only=True)
class Shadowing:
    """The version that also sees a share of the requests, 0..1."""

    version: int  # or NEWEST
    share: float


@dataclass(frozen=True, kw_only=True)
class VersionPolicy:
    """What is to be served of the versions that are there."""

    keep: int = 1  # newest good versions of a model that stay loaded
    pins: Mapping[str, int] = field(default_factory=dict)  # model name to the version that answers
    pins_file: Path | None = None  # its pins go before `pins`
    shadows: Mapping[str, Shadowing] = field(default_factory=dict)

    def read_pins(self) -> dict[str, int]:
        """Return the pins that hold now. Raises SettingsError for a file that cannot be read or understood."""
        return {**self.pins, **(_read_pins(self.pins_file) if self.pins_file else {})}


def parse_pins(text: str, *, source: str) -> dict[str, int]:
    """Return model name to version for "flowers=3,digits=1"; "#" begins a comment. Raises SettingsError."""
    pins: dict[str, int] = {}
    for word in _words(text):
        found = _PIN.fullmatch(word)
        if not found or found[1] in pins:
            raise SettingsError(f"{source}: found {word[:100]!r}, wanted one NAME=VERSION a model, such as flowers=3")
        pins[found[1]] = int(found[2])
    return pins


def parse_shadows(text: str, *, source: str) -> dict[str, Shadowing]:
    """Return model name to shadow for "flowers=4:0.1" or "flowers=newest:0.1". Raises SettingsError."""
    shadows: dict[str, Shadowing] = {}
    for word in _words(text):
        found = _SHADOW.fullmatch(word)
        if not found or found[1] in shadows or not 0 < float(found[3]) <= 1:
            raise SettingsError(
                f"{source}: found {word[:100]!r}, wanted one NAME=VERSION:SHARE a model, the share above 0 and at most "
                "1, such as flowers=4:0.1 or flowers=newest:0.1"
            )
        version = NEWEST if found[2] == "newest" else int(found[2])
        shadows[found[1]] = Shadowing(version=version, share=float(found[3]))
    return shadows


def _read_pins(path: Path) -> dict[str, int]:
    try:
        data = read_file(path, max_bytes=_MAX_PINS_BYTES)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; wanted a file of pins, empty for none") from error
    except BundleError as error:
        raise SettingsError(f"{path}: wanted a file of pins, of at most {_MAX_PINS_BYTES:,} bytes") from error
    return parse_pins(data.decode("utf-8-sig", errors="replace"), source=str(path))


def _words(text: str) -> list[str]:
    lines = (line.partition("#")[0] for line in text.splitlines())
    return " ".join(lines).replace(",", " ").split()
