"""Pictures to measure with where a person names none: noise with the spectrum of photographs, as JPEGs of 100 KB.

The amplitude falls with 1/f, as in natural images (Field 1987, J. Opt. Soc. Am. A 4:2379), so that a decoder has as
much to do as with a photograph. Two classes, told apart by their tint.
"""

from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE: Final = (500, 375)
WANTED_BYTES: Final = 100_000
TINTS: Final = {"cold": (0.8, 0.9, 1.1), "warm": (1.1, 0.9, 0.8)}


def write_photographs(folder: Path, *, train: int = 24, val: int = 48) -> Path:
    """Write folder/train and folder/val with so many pictures a class; return the folder. Nothing if it is there."""
    if folder.exists():
        return folder
    random = np.random.default_rng(0)
    for side, count in (("train", train), ("val", val)):
        for label, tint in TINTS.items():
            place = folder / side / label
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number:03d}.jpg").write_bytes(_jpeg(_noise(random), tint=tint))
    return folder


def _noise(random: np.random.Generator) -> NDArray[np.float64]:
    """Return (H, W, 3) noise of mean 0 and standard deviation 1 whose amplitude spectrum falls with 1/f."""
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(random.standard_normal((3, height, width)))
    pink = np.fft.irfft2(white / frequency, s=(height, width))
    return np.moveaxis(pink / pink.std(), 0, -1)


def _jpeg(noise: NDArray[np.float64], *, tint: tuple[float, float, float]) -> bytes:
    """Encode at the quality that comes nearest to WANTED_BYTES from below."""
    image = Image.fromarray(np.clip((128 + 45 * noise) * tint, 0, 255).astype(np.uint8))
    best = b""
    for quality in (60, 70, 80, 85, 90, 93, 95, 97):
        out = BytesIO()
        image.save(out, "JPEG", quality=quality)
        if best and len(out.getvalue()) > WANTED_BYTES:
            break
        best = out.getvalue()
    return best
