"""What is under way in this process, of all its models: is a batch alone on the cores, who may decode, who may wait."""

import threading
from typing import Final

from serving.admission import ByteBudget

_QUIET: Final = 2  # batches in a row that met no other


class Occupancy:
    """One for all models of a process. Entered around each batch, from its thread.

    `decoding` is held while a picture is decoded: so many at once have memory for it. `encoded` is what may wait.
    """

    def __init__(self, *, decoders: int = 1, encoded_bytes: int | None = None) -> None:
        self.decoding = threading.Semaphore(decoders)
        self.encoded = ByteBudget(encoded_bytes)
        self._lock = threading.Lock()
        self._batches = 0
        self._cores: set[int] = set()  # that batches have for themselves
        self._alone = 1  # batches in a row that began while no other was under way, and were not joined since

    @property
    def is_quiet(self) -> bool:
        """Whether a single batch is under way, and neither it nor the one before it has met another.

        One is not enough: each of two callers is alone now and then, and would be joined in the midst.
        """
        return self._batches == 1 and self._alone >= _QUIET

    def take(self, core: int) -> bool:
        """Give a core to a batch under way; not to one that is alone, and not where another has it."""
        with self._lock:
            if self.is_quiet or core in self._cores:
                return False
            self._cores.add(core)
            return True

    def give_back(self, core: int) -> None:
        """Take a core back."""
        with self._lock:
            self._cores.discard(core)

    def __enter__(self) -> None:
        """Count a batch in."""
        with self._lock:
            self._alone = 0 if self._batches else self._alone + 1
            self._batches += 1

    def __exit__(self, *_: object) -> None:
        """Count it out."""
        with self._lock:
            self._batches -= 1
