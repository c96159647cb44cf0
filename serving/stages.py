"""What is noted of a traced picture's way through the engine, and who may ask for it. Nothing is, untraced."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

Stage = tuple[str, int, int]  # name, start and end in ns since 1970


@dataclass(eq=False)
class PictureStages:
    """The stages of one picture; appended to by the engine's threads, one at a time."""

    admitted_ns: int = field(default_factory=time.time_ns)
    stages: list[Stage] = field(default_factory=list)

    def end(self, name: str, *, start_ns: int) -> int:
        """Note that a stage has ended now; return now."""
        now_ns = time.time_ns()
        self.stages.append((name, start_ns, now_ns))
        return now_ns


class RequestTrace(Protocol):
    """The trace of one request under way."""

    def answered_by(self, model: str, *, version: int) -> None:
        """Note which model answers."""

    def watch(self, picture_count: int) -> Sequence[PictureStages] | None:
        """Return what is to be noted for each picture; None where the request was not sampled."""


class Tracing(Protocol):
    """Makes traces; `tracing.OpenTelemetry` is the one there is."""

    def join(self, headers: Mapping[str, str]) -> None:
        """Continue the caller's trace, in the current task."""

    def request(self, door: str, *, picture_count: int) -> AbstractContextManager[RequestTrace]:
        """Trace a request while the context is open."""

    def close(self) -> None:
        """Send what is still held back; blocks."""
