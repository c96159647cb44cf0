"""How many batches are under way in this process, of all its models: one alone may use every core."""

import threading


class Occupancy:
    """One for all batchers of a process. Entered around each batch, from its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches = 0

    @property
    def is_single(self) -> bool:
        """Whether no more than one batch is under way."""
        return self._batches <= 1

    def __enter__(self) -> None:
        """Count a batch in."""
        with self._lock:
            self._batches += 1

    def __exit__(self, *_: object) -> None:
        """Count it out."""
        with self._lock:
            self._batches -= 1
