"""Signals while training: when one is only noted, and when it ends the process."""

import os
import signal
from collections.abc import Iterator

import pytest

from trainer.interruption import interruptible


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give the tests' process its own handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_first_signal_is_noted_and_the_second_one_stops() -> None:
    """One Ctrl-C waits for the end of a step; who asks again is obeyed at once."""
    with interruptible(is_patient=False) as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handlers_are_given_back() -> None:
    """What the process did before with a signal, it does again."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), interruptible(is_patient=False):
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def lose_a_peer() -> None:
    """End as a process of torchrun does whose peer was killed: SIGTERM comes while the error is on its way."""
    with interruptible(is_patient=True):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the peer is gone")


def test_process_of_torchrun_outlives_sigterm_until_it_has_told_why_it_ends() -> None:
    """torchrun answers a death with SIGTERM to the others; it may come when training has just been left."""
    with pytest.raises(RuntimeError, match="the peer is gone"):
        lose_a_peer()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # or the next line would end all tests
    os.kill(os.getpid(), signal.SIGTERM)
