"""Which model answers the requests that name none."""

from collections.abc import Collection
from typing import Final

from serving.errors import UnknownModelError

_SHOWN: Final = 20


class Unnamed:
    """The default model; without one the only model.

    Who was the only model at the start, or is the `usual` one, goes on answering when others appear: whoever named
    none goes on being answered.
    """

    def __init__(self, *, default: str = "", usual: str = "") -> None:
        self._default = default
        self._usual = usual  # may be gone

    def begin_with(self, names: Collection[str]) -> None:
        """Take note of the models that were here at the start."""
        if len(names) == 1:
            (self._usual,) = names

    def choose(self, names: Collection[str]) -> str:
        """Return the name that is meant among those that are known by now. Raises UnknownModelError."""
        if self._default or self._usual in names:
            return self._default or self._usual
        if len(names) == 1:
            return next(iter(names))
        raise UnknownModelError(f"several models are served, name one of {some(names)}")


def some(names: Collection[str]) -> str:
    """Return the first names in a line: a status has room for some 8 KB."""
    shown = sorted(names)[:_SHOWN]
    return ", ".join([*shown, *(["…"] if len(names) > _SHOWN else [])])
