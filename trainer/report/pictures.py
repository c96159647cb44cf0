"""Pictures as a page holds them: heat laid over a photograph, and data URIs."""

import base64
from io import BytesIO
from typing import Final

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

_COLOURS: Final = "inferno"
_COVER: Final = 0.6  # how much of the photograph the hottest place hides
_WEBP_QUALITY: Final = 72


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> Image.Image:
    """Lay heat (H, W) in 0..1 over a picture (H, W, 3) uint8: hot places glow, cold ones stay, a little darker."""
    glow = colormaps[_COLOURS](heat)[..., :3] * 255  # (H, W, 3)
    share = _COVER * (0.4 + 0.6 * heat[..., np.newaxis])
    return Image.fromarray(((1 - share) * pixels + share * glow).round().astype(np.uint8))


def data_uri(picture: Image.Image, *, quality: int = _WEBP_QUALITY) -> str:
    """Return a picture as a WebP data URI."""
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
