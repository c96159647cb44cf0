"""The pictures of a soak: every format that is read, from thumbnails to 12 megapixels, and one that only announces."""

from collections.abc import Sequence
from io import BytesIO
from typing import Final

from PIL import Image

SIZES: Final = ((31, 17), (48, 40), (500, 375), (375, 500), (1280, 960), (4000, 3000))


def mixed_pictures(given: Sequence[bytes] = ()) -> list[bytes]:
    """Return the given pictures and made ones: every format, from thumbnails to 12 megapixels."""
    made = []
    for number, size in enumerate(SIZES):
        image = Image.radial_gradient("L").resize(size).convert("RGB")
        names = ("JPEG",) if size[0] >= 4000 else ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
        for name in names if size[0] < 1000 else names[:3]:
            out = BytesIO()
            image.rotate(7 * number).save(out, name)
            made.append(out.getvalue())
    return [*given, *made]


def bomb() -> bytes:
    """Return a BMP header that announces 10 gigapixels."""
    out = BytesIO()
    Image.new("RGB", (1, 1)).save(out, "BMP")
    header = bytearray(out.getvalue())
    header[18:26] = (100_000).to_bytes(4, "little") * 2  # width and height
    return bytes(header)
