"""What several workers share: the port that they listen at, and a folder for their metrics."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from serving.addresses import Address
from serving.errors import StartupError
from serving.listening import check_free

_PREFIX: Final = "calotype-metrics-"
_LOCK: Final = "lock"
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 -- a folder of its own is made there


@contextmanager
def metrics_folder() -> Iterator[str]:
    """Make a folder in shared memory, which no disk that fills up takes away; TMPDIR names another place."""
    place = None if "TMPDIR" in os.environ or not os.access(_SHARED_MEMORY, os.W_OK) else _SHARED_MEMORY
    try:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place)
    except OSError as error:
        raise StartupError(
            "several workers keep their metrics in a folder for temporary files, and there is none to write to; name "
            "one in TMPDIR, such as /dev/shm, or choose --workers 1"
        ) from error
    with folder as name, _locked(Path(name)):
        yield name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock in our folder, and remove those beside it that nobody holds: who is killed leaves one behind.

    A lock tells where a process id would not: containers may share the place, and not their numbers.
    """
    with (folder / f".{_LOCK}").open("wb") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        Path(own.name).rename(folder / _LOCK)  # never there without being held
        for lock in folder.parent.glob(f"{_PREFIX}*/{_LOCK}"):
            with suppress(OSError), lock.open("rb") as other:  # held, another user's, or gone by now
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
        yield


@contextmanager
def held_port(address: Address) -> Iterator[str]:
    """Bind without listening, so that the port stays ours and the system sends it no connections; yield the address."""
    if address.is_file:
        raise StartupError(f"{address.text}: several workers want a host:port to share; choose another, or --workers 1")
    check_free(address, is_shared=False)  # with each other alone
    with ExitStack() as stack:
        family, place = address.places()[0]
        try:
            held = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closing is no obstacle
            held.bind(place)
            # Else another server may bind beside it, as none of both listens: workers have SO_REUSEPORT in common.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            raise StartupError(
                f"{address.text}: cannot listen there, {error.strerror}; choose another address"
            ) from error
        yield f"{address.text.rpartition(':')[0]}:{held.getsockname()[1]}"
