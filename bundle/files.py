"""Read a file of a bundle that may hold anything: never more than is allowed, and never what is no file."""

import os
import stat
from pathlib import Path

from bundle.errors import BundleError


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """Return a regular file's bytes; a link to one counts, a device or a pipe does not.

    Raises BundleError for another kind or a larger file, OSError where it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for who writes to it
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: found a device, pipe or folder, wanted a file; export the bundle again")
        if status.st_size <= max_bytes:  # one that grows meanwhile is cut off, and fails its hash
            return file.read(status.st_size)
    raise BundleError(f"{path}: {status.st_size:,} bytes, wanted at most {max_bytes:,}; export the bundle again")
