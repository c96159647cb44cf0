"""What a batcher tells of its work."""

from typing import Literal

Closing = Literal["full", "shared", "drained"]  # at its limit; the rest left for the next one; nothing more waited


class Observer:
    """Hears what a batcher does, from its threads; this one does not listen."""

    def on_queue(self, items: int) -> None:
        """Hear how many admitted items no instance has taken, whenever that changes; under the batcher's lock."""

    def on_wait(self, seconds: float) -> None:
        """Hear how long an item waited for a thread, all told."""

    def on_batch(self, size: int, *, closing: Closing, seconds: float) -> None:
        """Hear of a batch that was run, and for how long."""

    def on_drop(self, reason: Literal["deadline", "cancelled"]) -> None:
        """Hear of an admitted item that was not run."""
