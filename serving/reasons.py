"""Why a version does not serve: what a caller may read of it, without where our files lie; and when to try again."""

import errno
import math
import re
import time
from pathlib import Path
from typing import Final

TRY_AGAIN_S: Final = 60.0  # as TensorFlow Serving waits, by default
_MAX_CHARACTERS: Final = 1000
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_IN_WORDS: Final = ("std::bad_alloc", "Failed to allocate memory", "can't start new thread")  # onnxruntime's, Python's
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


def worth_a_try_at(error: BaseException) -> float:
    """Return when a version that failed so may serve though its folder is the same; time.monotonic, infinity: never."""
    return time.monotonic() + TRY_AGAIN_S if is_shortage(error) else math.inf


def is_shortage(error: BaseException) -> bool:
    """Say whether it came, first or last, of what the machine lacked for a while: descriptors, memory, a disk."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES):
        return True
    if any(words in str(error) for words in _IN_WORDS):
        return True
    return error.__cause__ is not None and is_shortage(error.__cause__)
