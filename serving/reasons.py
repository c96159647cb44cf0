"""What a caller may read of why a version does not serve: the reason, without where our files lie."""

import re
from pathlib import Path
from typing import Final

_MAX_CHARACTERS: Final = 1000
_ABSOLUTE: Final = re.compile(r"(?<![\w./-])/[^\s\"';:,()]+")


def plain_line(reason: str) -> str:
    """Return a reason that may hold what a stranger wrote: without control characters, and not beyond a thousand."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in reason[: _MAX_CHARACTERS + 1])
    return shown if len(shown) <= _MAX_CHARACTERS else f"{shown[:_MAX_CHARACTERS]}…"


def public_reason(reason: str, *, models: Path) -> str:
    """Return a reason in which files below `models` are named from there, and any other path is "…"."""
    for folder in {models, models.resolve()}:
        reason = reason.replace(f"{folder}/", "")
    return _ABSOLUTE.sub("…", reason)
