"""Read a file once: its hash, whether it is a picture, and the few figures by which pictures are compared.

Knows no labels and no sides. Files are read, never changed.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import ImageError
from bundle.preprocess import DEFAULT_LIMITS, decode

THUMB_PX: Final = 16
_SAMPLE_PX: Final = 32  # also what the perceptual hash scales to: nothing finer is decoded where the format allows


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What a picture looks like, in about 1 KB."""

    format: str
    mode: str  # Pillow's name, as it is in the file
    width_px: int
    height_px: int
    colour_count: int  # distinct ones among 32 x 32 samples
    phash: int  # 64 bits
    thumb: NDArray[np.uint8]  # (16, 16, 3)


@dataclass(frozen=True, kw_only=True)
class ReadFile:
    """A readable picture."""

    sha256: str
    look: Look


def read_file(path: Path) -> ReadFile | str:
    """Return a picture's hash and look, or the reason why it is none."""
    try:
        if not path.is_file():
            return "no such file" if not path.exists() else "not a regular file"
        with path.open("rb") as file:
            data = file.read(DEFAULT_LIMITS.max_bytes + 1)  # one more than `decode` takes: it says so
        picture = decode(data, cover_px=_SAMPLE_PX)
    except OSError as error:
        return str(error.strerror)
    except ImageError as error:
        return str(error)
    return ReadFile(sha256=hashlib.sha256(data).hexdigest(), look=_look(data, picture))


def _look(data: bytes, picture: Image.Image) -> Look:
    with Image.open(BytesIO(data)) as header:  # `decode` has checked its size and found it readable
        kind, mode, (width, height) = str(header.format), header.mode, header.size
    samples = np.asarray(picture.resize((_SAMPLE_PX, _SAMPLE_PX), Image.Resampling.NEAREST)).reshape(-1, 3)
    bits = np.packbits(imagehash.phash(picture).hash.ravel())  # (8,) uint8
    return Look(
        format=kind,
        mode=mode,
        width_px=width,
        height_px=height,
        colour_count=len(np.unique(samples, axis=0)),
        phash=int.from_bytes(bits.tobytes(), "big"),
        thumb=np.asarray(picture.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)),
    )
