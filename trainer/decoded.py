"""Keep decoded pictures on disk while a run lasts, so that none is decoded twice for the same size.

Knows nothing of labels or tensors. One file a picture, complete before it has its name: worker processes and threads
share the folder without a lock. The process itself holds nothing; the kernel keeps in memory what fits and drops it
when something else needs the room (a 500x375 picture: 1.5 ms to decode, 0.1 ms to read back).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle.preprocess import decode_pixels
from trainer.data import Picture

SPARE_BYTES: Final = 2 * 2**30  # left free on the disk; beyond, pictures are decoded each time
_PREFIX: Final = ".decoded-"


@contextmanager
def decoded_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for decoded pictures below `parent`; it goes with the block, and what a killed process left too."""
    for left_over in parent.glob(f"{_PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def pixels_of(
    picture: Picture, folder: Path | None, *, cover_px: int, spare_bytes: int = SPARE_BYTES
) -> NDArray[np.uint8]:
    """Return what `decode_pixels` gives for a file, uint8 (H, W, 3): from `folder`, else from the file and kept there.

    Raises ImageError or OSError for the picture itself. A full disk costs time, not the run.
    """
    if folder is None:
        return decode_pixels(picture.path.read_bytes(), cover_px=cover_px)
    kept = folder / f"{picture.sha256}-{cover_px}.npy"
    try:
        found: NDArray[np.uint8] = np.load(kept, allow_pickle=False)
        return found
    except FileNotFoundError:
        pixels = decode_pixels(picture.path.read_bytes(), cover_px=cover_px)
        if shutil.disk_usage(folder).free >= spare_bytes + pixels.nbytes:
            _keep(pixels, kept)
        return pixels


def forget(folder: Path, *, cover_px: int) -> None:
    """Remove what was kept for this size: a crop that is not looked at again."""
    for kept in folder.glob(f"*-{cover_px}.npy"):
        kept.unlink(missing_ok=True)


def _keep(pixels: NDArray[np.uint8], kept: Path) -> None:
    number, partial = tempfile.mkstemp(dir=kept.parent, suffix=".partial")
    try:
        with os.fdopen(number, "wb") as file:
            np.save(file, pixels, allow_pickle=False)
        Path(partial).replace(kept)
    except OSError:  # the disk is full after all: the next reader decodes again
        Path(partial).unlink(missing_ok=True)
