"""Read a file of a bundle that may hold anything: never more than is allowed, and never what is no file."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from bundle.errors import BundleError


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Return a regular file's bytes; a link to one counts, a device or a pipe does not.

    Raises BundleError for another kind or a larger file, OSError where it cannot be read.
    """
    with _opened(path, max_bytes=max_bytes) as (file, size_bytes):
        return file.read(size_bytes)


def read_hashed(path: Path, *, max_bytes: int, sha256: str) -> tuple[bytes, str]:
    """Return what `read_file` does, and its sha256. A file with another one is not taken into memory: no bytes then."""
    with _opened(path, max_bytes=max_bytes) as (file, size_bytes):
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            return b"", found
        file.seek(0)
        data = file.read(size_bytes)
    return data, hashlib.sha256(data).hexdigest()  # of these very bytes: the file may be another's by now


@contextmanager
def _opened(path: Path, *, max_bytes: int) -> Iterator[tuple[BufferedReader, int]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for who writes to it
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: found a device, pipe or folder, wanted a file; export the bundle again")
        if status.st_size > max_bytes:
            raise BundleError(
                f"{path}: {status.st_size:,} bytes, wanted at most {max_bytes:,}; export the bundle again"
            )
        yield file, status.st_size  # one that grows meanwhile is cut off, and fails its hash
