"""What an HTTP request asks beside its pictures: the query of its URL, read strictly."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from starlette.datastructures import QueryParams

from serving.errors import InvalidRequestError

_MAX_TOP_K: Final = 2**32 - 1  # as in the proto
_MAX_TIMEOUT_MS: Final = 3_600_000
_PLAIN: Final = re.compile(r"[0-9.eE+-]+")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a request asks beside its pictures."""

    model: str = ""
    version: str = ""
    top_k: int = 0
    min_score: float = 0.0
    timeout_ms: int | None = None

    @classmethod
    def parse(cls, query: QueryParams, *, model: str) -> Self:
        """Read the query of a URL. Raises InvalidRequestError."""
        unknown = set(query) - {"version", "top_k", "min_score", "timeout_ms"}
        if unknown:
            raise InvalidRequestError(
                f"query: found {min(unknown)[:32]!r}, wanted version, top_k, min_score or timeout_ms; a model is named "
                "in the path, /v1/models/NAME:classify"
            )
        if len(versions := query.getlist("version")) > 1:
            raise InvalidRequestError(f"version: found {', '.join(versions)[:32]!r}, wanted one")
        return cls(
            model=model,
            version=query.get("version", ""),
            top_k=_number(query, "top_k", kind=int, low=0, high=_MAX_TOP_K) or 0,
            min_score=_number(query, "min_score", kind=float, low=0, high=1) or 0.0,
            timeout_ms=_number(query, "timeout_ms", kind=int, low=1, high=_MAX_TIMEOUT_MS),
        )


def _number(query: QueryParams, name: str, *, kind: type[Number], low: int, high: int) -> Number | None:
    """Return what a query says, or nothing. Raises InvalidRequestError."""
    texts = query.getlist(name)
    if not texts:
        return None
    with suppress(ValueError):
        value = kind(texts[0] if _PLAIN.fullmatch(texts[0]) else "")  # Python takes 1_0 and digits of any script
        if low <= value <= high and len(texts) == 1:
            return value
    wanted = "a whole number " if kind is int else ""
    raise InvalidRequestError(f"{name}: found {', '.join(texts)[:32]!r}, wanted {wanted}{low}..{high}, once")
