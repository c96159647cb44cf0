"""From a picture as Pillow has loaded it to upright RGB pixels: the rules are those of `preprocess`.

A large picture is converted in bands: beside what Pillow holds (1 to 4 bytes a pixel) and the result (3) there is only
one band. Whole, a PNG with alpha took 16 bytes a pixel.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from bundle.errors import UnsupportedFormatError

_BAND_PIXELS: Final = 2**17
_MAX_EXIF_BYTES: Final = 2**18


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) of a loaded picture, turned as its EXIF orientation says.

    Raises UnsupportedFormatError for a type of pixel that is not read.
    """
    return _turned(_rgb(image), orientation=orientation(image))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 where there is none, no such one, or far more EXIF than cameras write."""
    if len(image.info.get("exif", b"")) > _MAX_EXIF_BYTES:  # of one number after the other Pillow makes an object
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 -- EXIF that cannot be parsed turns nothing: the picture itself is fine
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(pixels: NDArray[np.uint8], *, orientation: int) -> NDArray[np.uint8]:
    """Return a view, see EXIF 2.32, tag 0x0112."""
    views = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }
    return views[orientation]


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height <= _BAND_PIXELS:
        return np.asarray(_converted(image))
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    step = max(1, _BAND_PIXELS // min(width, height))
    for start in range(0, max(width, height), step):  # bands across the longer side
        if width > height:
            band = (start, 0, min(start + step, width), height)
        else:
            band = (0, start, width, min(start + step, height))
        left, top, right, bottom = band
        pixels[top:bottom, left:right] = np.asarray(_converted(image.crop(band)))
    return pixels


def _converted(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        grey = (samples >> 8).astype(np.uint8)  # (H, W) uint16 -> high byte
        if isinstance(clear := image.info.get("transparency"), int):  # PNG tRNS: this one sample value is transparent
            grey[samples == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise UnsupportedFormatError(f"pixel type {image.mode!r} is not read, wanted 8 or 16 bits of grey or colour")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
