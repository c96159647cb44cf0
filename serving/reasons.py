"""What a caller may read of why a version does not serve: the reason, without where our files lie."""

import re
from pathlib import Path
from typing import Final

_ABSOLUTE: Final = re.compile(r"(?<![\w./-])/[^\s\"';:,()]+")


def public_reason(reason: str, *, models: Path) -> str:
    """Return a reason in which files below `models` are named from there, and any other path is "…"."""
    for folder in {models, models.resolve()}:
        reason = reason.replace(f"{folder}/", "")
    return _ABSOLUTE.sub("…", reason)
