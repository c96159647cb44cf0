"""Ctrl-C and SIGTERM while training: noted at once, obeyed between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible(*, is_patient: bool) -> Iterator[list[int]]:
    """Yield a list that the first Ctrl-C or SIGTERM fills, so that a step is never torn; a second one stops at once.

    A patient process outlasts the second one, from torchrun: each Ctrl-C comes twice, from the terminal and passed on.
    It stays deaf afterwards: the death of another process also brings SIGTERM, and why it ends is not told yet.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if not is_patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        if not is_patient:
            for number, handler in previous.items():
                signal.signal(number, handler)
