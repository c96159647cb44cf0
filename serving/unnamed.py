"""Which model answers the requests that name none."""

from collections.abc import Collection
from typing import Final

from serving.errors import UnknownModelError

_SHOWN: Final = 20


class Unnamed:
    """The default model; without one the only model that answers.

    Who was the only model at the start, or is the `usual` one, goes on answering when others appear: whoever named
    none goes on being answered.
    """

    def __init__(self, *, default: str = "", usual: str = "") -> None:
        self._default = default
        self.usual = usual  # may be gone

    def begin_with(self, answering: Collection[str]) -> None:
        """Take note of the models that answered at the start, unless it is known which one is the usual."""
        if len(answering) == 1 and not self.usual:
            (self.usual,) = answering

    def choose(self, known: Collection[str], *, answering: Collection[str]) -> str:
        """Return the name that is meant: one that answers, or among those that are known. Raises UnknownModelError."""
        if self._default or self.usual in known:
            return self._default or self.usual
        meant = answering or known
        if len(meant) == 1:
            return next(iter(meant))
        raise UnknownModelError(f"several models are served, name one of {some(meant)}; or serve with --default-model")


def some(names: Collection[str]) -> str:
    """Return the first names in a line: a status has room for some 8 KB."""
    shown = sorted(names)[:_SHOWN]
    return ", ".join([*shown, *(["…"] if len(names) > _SHOWN else [])])
