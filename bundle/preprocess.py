"""Turn the bytes of a picture into model input: the one preprocessing, for evaluation, proof and serving.

The rules, each with a test of its own:

- The content decides the format, never the file's name. JPEG, PNG, WebP, BMP, GIF and TIFF are read.
- Bytes and pixels are capped; pixels from the header, before anything is decoded. So are what costs more than its
  pixels say: a TIFF's tiles, a JPEG's scans, a BMP's run lengths, parts without end: see `structure`.
- JPEGs are decoded at the smallest DCT scale (1/8, 1/4, 1/2, 1) whose shorter side still covers `resize_px`.
- EXIF orientation is applied. Colour profiles are ignored.
- Grey is repeated into three channels; 16-bit samples keep their high byte; CMYK is converted plainly.
- Transparency, with or without a palette, is composited on white. Of an animation the first frame is taken.
- The centre square that makes `crop_px` of a shorter side of `resize_px`, in whole pixels, is scaled to `crop_px` by a
  convolution with antialiasing (SIMD: 0.25 ms for Pillow's 0.94 ms, 500x375 bicubic). Nothing beyond the square is
  looked at. A picture smaller than the crop is enlarged.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Final, Literal

import numpy as np
import simplejpeg
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from bundle import formats, structure
from bundle.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    NotAnImageError,
    TooManyPixelsError,
    TruncatedImageError,
    UnsupportedFormatError,
)
from bundle.upright import orientation, upright_rgb

DECODE_RULE: Final = "pillow-dct-2"  # named in every manifest; a change of the rules above needs a new name

_OPTIONS: Final = {
    "bicubic": ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.catmull_rom)),  # a = -0.5
    "bilinear": ResizeOptions(resize_alg=ResizeAlg.convolution(FilterType.bilinear)),
}
_USUAL_BYTES_PER_PIXEL: Final = 8  # 7.9 measured, of every format with and without alpha: see upright
_BYTES_PER_PIXEL: Final = {"WEBP": 17}  # 16.2 measured: its decoder keeps two canvases
_MAX_SCANS: Final = 100  # of a JPEG: encoders write about 10, and each takes as long as all the pixels
_SCAN_BYTES: Final = 10  # the least that one takes
_RUN_LENGTHS: Final = (1, 2)  # BMP's compression, which Pillow decodes in Python: 8 s for 64 Mpx
_MAX_RUN_LENGTH_PIXELS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """How an upright picture becomes (crop_px, crop_px, 3) uint8."""

    resize_px: int = 256  # the shorter side after scaling
    crop_px: int = 224  # side of the centre square that is kept
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    decode_rule: Literal["pillow-dct-2"] = DECODE_RULE

    def scaled(self, crop_px: int) -> "PreprocessSpec":
        """Return a spec that looks at the same part of a picture, scaled to another side."""
        resize_px = max(crop_px, round(crop_px * self.resize_px / self.crop_px))
        return replace(self, resize_px=resize_px, crop_px=crop_px)


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Caps that hold before anything is allocated."""

    max_bytes: int = 20 * 2**20  # encoded bytes of one picture
    max_pixels: int = 64_000_000  # width x height from the header
    max_decoding_bytes: int = 2 * 2**30  # of memory while one picture is decoded, scaled and cropped


DEFAULT_LIMITS: Final = DecodeLimits()


def decode(data: bytes, *, cover_px: int, limits: DecodeLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a picture to upright RGB whose shorter side is at least min(cover_px, its own).

    Raises the ImageError that fits; never anything else for bad bytes.
    """
    return Image.fromarray(decode_pixels(data, cover_px=cover_px, limits=limits))


def decode_pixels(data: bytes, *, cover_px: int, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Do what `decode` does; return uint8 (H, W, 3)."""
    name = _readable_format(data, limits)
    try:
        with Image.open(BytesIO(data), formats=formats.READABLE) as image:
            _check_pixels(image.size, limits)
            _check_costs(data, image, name=name, limits=limits)
            _check_memory(data, image, name=name, cover_px=cover_px, limits=limits)
            if name == "JPEG":
                plain = _plain_jpeg(data, image, cover_px=cover_px)
                if plain is not None:
                    return plain
                image.draft(None, (cover_px, cover_px))
            image.load()
            return upright_rgb(image)
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixelsError(f"{error}; wanted at most {limits.max_pixels:,} pixels") from error
    except Exception as error:  # Pillow's parsers raise a dozen types on bad bytes, all meaning this one picture
        raise _unreadable(name, data, error) from error


def to_input(picture: Image.Image | NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Scale and crop an RGB picture, (H, W, 3) where it is an array, to uint8 (crop_px, crop_px, 3), values 0..255."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    side = max(1, round(min(width, height) * spec.crop_px / spec.resize_px))
    left, top = (width - side) // 2, (height - side) // 2
    # Cropped here, not with the library's crop_box: with one of fractional size it reads past the picture and crashes.
    square = ImageData(side, side, PixelType.U8x3, pixels[top : top + side, left : left + side].tobytes())
    scaled = ImageData(spec.crop_px, spec.crop_px, PixelType.U8x3)
    Resizer().resize(square, scaled, _OPTIONS[spec.interpolation])  # one each: a shared one refuses a second thread
    return np.frombuffer(scaled.get_buffer(), dtype=np.uint8).reshape(spec.crop_px, spec.crop_px, 3)


def load_input(data: bytes, spec: PreprocessSpec, *, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode and preprocess in one call: bytes to uint8 (crop_px, crop_px, 3). Raises ImageError."""
    return to_input(decode_pixels(data, cover_px=spec.resize_px, limits=limits), spec)


def _readable_format(data: bytes, limits: DecodeLimits) -> str:
    if not data:
        raise EmptyImageError("found 0 bytes, wanted a picture; was the upload or the copy cut off?")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(f"found {len(data):,} bytes, wanted at most {limits.max_bytes:,}; send a smaller copy")
    name = formats.sniff(data)
    if name is None:
        raise NotAnImageError(f"found bytes that begin no picture, wanted one of {', '.join(formats.READABLE)}")
    if name not in formats.READABLE:
        raise UnsupportedFormatError(f"{name} is not read, wanted one of {', '.join(formats.READABLE)}; convert it")
    if name == "WEBP" and (size := formats.webp_size(data)) is not None:
        _check_pixels(size, limits)
    if (fault := structure.fault(data, name)) is not None:
        raise CorruptImageError(f"{name} has {fault}; save it again with another program")
    return name


def _check_pixels(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise TooManyPixelsError(
            f"found {width} x {height} pixels, wanted at most {limits.max_pixels:,} in all; send a smaller copy"
        )


def _check_costs(data: bytes, image: Image.Image, *, name: str, limits: DecodeLimits) -> None:
    """Refuse what would take far more memory or time than its pixels say."""
    if isinstance(image, TiffImageFile):
        sides = [image.tag_v2.get(tag, 0) for tag in (TILEWIDTH, TILELENGTH)]  # a whole tile is allocated
        if all(isinstance(side, int) for side in sides):
            _check_pixels((sides[0], sides[1]), limits)
    elif name == "JPEG":
        most_scans = len(data) // _SCAN_BYTES
        costs = most_scans * image.width * image.height > _MAX_SCANS * limits.max_pixels  # else not worth the counting
        if costs and (scans := formats.jpeg_scans(data)) > _MAX_SCANS:
            raise CorruptImageError(f"JPEG has {scans:,} scans, wanted at most {_MAX_SCANS}; save it again")
    elif image.info.get("compression") in _RUN_LENGTHS and image.width * image.height > _MAX_RUN_LENGTH_PIXELS:
        raise TooManyPixelsError(
            f"found {image.width} x {image.height} pixels in a BMP of run lengths, wanted at most "
            f"{_MAX_RUN_LENGTH_PIXELS:,}; save it as PNG"
        )


def _check_memory(data: bytes, image: Image.Image, *, name: str, cover_px: int, limits: DecodeLimits) -> None:
    pixel_count = image.width * image.height
    needed_bytes = _BYTES_PER_PIXEL.get(name, _USUAL_BYTES_PER_PIXEL) * pixel_count
    if name == "JPEG":
        coefficients_bytes = 2 * len(image.getbands()) * pixel_count
        needed_bytes = needed_bytes // _scale(image, cover_px=cover_px) ** 2 + coefficients_bytes
        if needed_bytes > limits.max_decoding_bytes and not formats.is_jpeg_kept_whole(data):
            needed_bytes -= coefficients_bytes
    if needed_bytes > limits.max_decoding_bytes:
        raise TooManyPixelsError(
            f"found {image.width} x {image.height} pixels, {needed_bytes / 1e6:,.0f} MB while this {name} is decoded, "
            f"wanted at most {limits.max_decoding_bytes / 1e6:,.0f} MB; send a smaller copy"
        )


def _scale(image: Image.Image, *, cover_px: int) -> int:
    """Return by what a JPEG is divided while it is decoded."""
    return next((scale for scale in (8, 4, 2) if min(image.size) // scale >= cover_px), 1)


def _plain_jpeg(data: bytes, image: Image.Image, *, cover_px: int) -> NDArray[np.uint8] | None:
    """Decode an upright colour or grey JPEG without Pillow, to the same pixels in less time; None: leave it to Pillow.

    1.41 ms for 1.64, 138 KB of 500x375. Whatever libjpeg warns of goes to Pillow too, which knows what is wrong.
    """
    if image.mode not in ("RGB", "L") or orientation(image) != 1:
        return None
    scale = _scale(image, cover_px=cover_px)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != image.size[::-1]:  # what was checked is what gets decoded
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_width=-(-image.width // scale), min_height=-(-image.height // scale)
        )
    except ValueError:
        return None
    return pixels


def _unreadable(name: str, data: bytes, error: Exception) -> ImageError:
    reason = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else str(error)
    cut = (
        "truncated" in reason.lower()  # Pillow writes it both ways
        or isinstance(error, EOFError)
        or (name == "WEBP" and formats.is_cut_webp(data))
        or (name == "TIFF" and formats.is_cut_tiff(data))
    )
    if cut:
        return TruncatedImageError(f"{name} ends after {len(data):,} bytes, before its last pixel; send it again")
    return CorruptImageError(f"{name} is damaged ({reason}); save it again with another program")
