"""Every written rule of decoding and preprocessing, on pictures made by hand."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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
from bundle.preprocess import DecodeLimits, PreprocessSpec, decode, load_input, to_input
from tests.fuzz.broken_files import run_length_bmp, tiled_tiff

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]
PIXEL = (10, 20, 30)


def encode(picture: Image.Image, name: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> list:
    picture = decode(data, cover_px=8)
    assert picture.mode == "RGB"
    return np.asarray(picture).tolist()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(samples: bytes, *, size=(1, 1), depth: int, colour: int, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(b"\0" + samples))
    return b"\x89PNG\r\n\x1a\n" + header + extra + body + png_chunk(b"IEND", b"")


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# The letters of [[a, b, c], [d, e, f]] as a viewer must show them.
UPRIGHT = {
    1: ["abc", "def"],
    2: ["cba", "fed"],
    3: ["fed", "cba"],
    4: ["def", "abc"],
    5: ["ad", "be", "cf"],
    6: ["da", "eb", "fc"],
    7: ["fc", "eb", "da"],
    8: ["cf", "be", "ad"],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_exif_orientation_is_applied(mode: str, name: str, orientation: int):
    """All eight turns and flips, whatever has to be converted besides."""
    grey = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 256 + 99)
    else:
        picture = Image.fromarray(grey).convert(mode)
    value = dict(zip("abcdef", grey.ravel().tolist(), strict=True))
    expected = [[[value[letter]] * 3 for letter in row] for row in UPRIGHT[orientation]]
    assert pixels(encode(picture, name, exif=oriented(orientation))) == expected


def test_a_jpeg_is_turned_after_its_scaled_decode():
    """A wide photo that was held upright comes out tall."""
    data = encode(Image.new("RGB", (64, 32)), "JPEG", exif=oriented(6))
    assert decode(data, cover_px=16).size == (16, 32)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int):
    """EXIF knows 1 to 8."""
    assert decode(encode(Image.new("RGB", (2, 1)), exif=oriented(orientation)), cover_px=8).size == (2, 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of the EXIF, as it should
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
)
def test_broken_exif_does_not_harm_the_picture(name: str, exif: bytes):
    """Orientation is then taken as upright."""
    assert decode(encode(Image.new("RGB", (4, 2)), name, exif=exif), cover_px=8).size == (4, 2)


@pytest.mark.parametrize(
    ("picture", "options", "expected"),
    [
        (Image.new("L", (1, 1), 77), {}, (77, 77, 77)),
        (Image.new("1", (1, 1), 1), {}, (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), {}, (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (0, 100, 255, 51)), {}, (204, 224, 255)),  # 1/5 of it on 4/5 white
        (Image.new("LA", (1, 1), (0, 51)), {}, (204, 204, 204)),
        (Image.new("RGB", (1, 1), PIXEL), {"transparency": PIXEL}, (255, 255, 255)),
        (Image.new("RGB", (1, 1), PIXEL), {"transparency": (1, 1, 1)}, PIXEL),
        (Image.new("L", (1, 1), 7), {"transparency": 7}, (255, 255, 255)),
    ],
)
def test_grey_and_alpha_become_rgb_on_white(picture: Image.Image, options: dict, expected: tuple):
    """Grey is repeated, transparency shows white."""
    assert pixels(encode(picture, **options)) == [[list(expected)]]


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_palette_is_looked_up_and_its_transparency_is_white(name: str):
    """Index 0 is transparent in the second file only."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([*PIXEL, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    assert pixels(encode(picture, name)) == [[list(PIXEL), [200, 100, 50]]]
    assert pixels(encode(picture, name, transparency=0)) == [[[255, 255, 255], [200, 100, 50]]]


def test_cmyk_is_converted_plainly():
    """Without ink the paper is white; full cyan takes all red."""
    picture = Image.new("CMYK", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(encode(picture, "TIFF")) == [[[255, 255, 255], [0, 255, 255]]]
    (corner, *_), *_ = pixels(encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))
    assert np.abs(np.subtract(corner, (0, 255, 255))).max() <= 3


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(name: str):
    """0x12FF is 0x12, not clipped to 255."""
    picture = Image.fromarray(np.array([[0x12FF, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert pixels(encode(picture, name)) == [[[0x12] * 3, [0x80] * 3, [0xFF] * 3]]


def test_16_bit_png_of_every_kind_keeps_its_high_byte():
    """Colour, alpha, and one transparent grey value, which Pillow can read but not write."""
    assert pixels(png_of(struct.pack(">3H", 0x12FF, 0x8000, 0xFFFF), depth=16, colour=2)) == [[[0x12, 0x80, 0xFF]]]
    assert pixels(png_of(struct.pack(">4H", 0x12FF, 0, 0, 0), depth=16, colour=6)) == [[[255] * 3]]
    clear = png_chunk(b"tRNS", struct.pack(">H", 0x12FF))
    data = png_of(struct.pack(">2H", 0x12FF, 0x1200), size=(2, 1), depth=16, colour=0, extra=clear)
    assert pixels(data) == [[[255] * 3, [0x12] * 3]]


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_other_pixel_types_are_refused_by_name(mode: str):
    """Their range is not known."""
    with pytest.raises(UnsupportedFormatError, match=f"pixel type '{mode}'"):
        decode(encode(Image.new(mode, (2, 2)), "TIFF"), cover_px=8)


@pytest.mark.parametrize(("name", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("MPO", {}), ("TIFF", {})])
def test_the_first_picture_of_several_is_taken(name: str, options: dict):
    """Animations, double JPEGs and multi-page TIFFs answer for their first picture."""
    more = [Image.new("RGB", (8, 8), "blue")]
    data = encode(Image.new("RGB", (8, 8), "red"), name, save_all=True, append_images=more, **options)
    assert np.abs(np.subtract(pixels(data), (255, 0, 0))).max() <= 1


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of a TIFF directory that is not there
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in FORMATS), ("WEBP", {"lossless": True}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_a_picture_without_its_end_is_truncated(name: str, options: dict):
    """Cut after three quarters, every format says so."""
    data = encode(NOISE, name, **options)
    with pytest.raises(TruncatedImageError, match=f"{name} ends after"):
        decode(data[: len(data) * 3 // 4], cover_px=8)


@pytest.mark.parametrize("end", range(40, 54))
def test_a_bitmap_cut_in_its_header_is_truncated(end: int):
    """Pillow spells "Truncated" with a capital here."""
    with pytest.raises(TruncatedImageError):
        decode(encode(NOISE, "BMP")[:end], cover_px=8)


def test_zero_bytes_are_empty():
    """No bytes are not a damaged picture."""
    with pytest.raises(EmptyImageError, match="found 0 bytes"):
        decode(b"", cover_px=8)


@pytest.mark.parametrize("data", [b"hello", b"\0" * 100, b"PK\x03\x04", b"RIFF\0\0\0\0WAVEfmt ", b"<html>", b"\xff"])
def test_other_bytes_are_not_a_picture(data: bytes):
    """Text, zips and sound begin no picture."""
    with pytest.raises(NotAnImageError, match="wanted one of JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        decode(data, cover_px=8)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1", "HEIF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns=", "SVG"),
        (b'<?xml version="1.0"?><svg>', "SVG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
    ],
)
def test_a_format_that_is_not_read_is_refused_by_name(data: bytes, name: str):
    """A person learns what to convert."""
    with pytest.raises(UnsupportedFormatError, match=f"{name} is not read"):
        decode(data + b"\0" * 32, cover_px=8)


def webp_header(chunk: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 22) + b"WEBP" + chunk + struct.pack("<I", 10) + body.ljust(10, b"\0")


def bombs() -> dict[str, bytes]:
    """Return headers that announce 9,000 or 16,000 px a side, with nothing behind them."""
    jpeg = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 9000, 9000)
    gif = bytearray(encode(Image.new("P", (1, 1)), "GIF"))
    gif[6:10] = struct.pack("<HH", 9000, 9000)
    bmp = bytearray(encode(Image.new("RGB", (1, 1)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 9000, 9000)
    tags = [(256, 4, 1, 9000), (257, 4, 1, 9000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    side = 15_999
    return {
        "PNG": png_of(b"", size=(9000, 9000), depth=8, colour=2),
        "JPEG": bytes(jpeg),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "TIFF": b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4),
        "VP8": webp_header(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000)),
        "VP8L": webp_header(b"VP8L", b"\x2f" + struct.pack("<I", side | side << 14)),
        "VP8X": webp_header(b"VP8X", bytes(4) + side.to_bytes(3, "little") * 2),
    }


@pytest.mark.parametrize("kind", bombs())
def test_a_pixel_bomb_is_refused_from_its_header(kind: str):
    """There are no pixels behind these headers: decoding them would say truncated or damaged."""
    with pytest.raises(
        TooManyPixelsError, match=r"found (9000 x 9000|16000 x 16000) pixels, wanted at most 64,000,000"
    ):
        decode(bombs()[kind], cover_px=8)


def test_a_tile_larger_than_its_picture_counts_as_pixels():
    """libtiff allocates and inflates a whole tile: 1.6 GB of a file of 1.6 MB."""
    assert pixels(tiled_tiff(16))[1][2] == [18, 18, 18]
    with pytest.raises(TooManyPixelsError, match="found 40960 x 40960 pixels"):
        decode(tiled_tiff(40960), cover_px=8)


def test_a_jpeg_of_many_scans_is_refused():
    """Each takes as long as all the pixels, and needs ten bytes."""
    whole, scan = encode(NOISE, "JPEG", progressive=True), bytes.fromhex("ffda0008010100003f00")
    assert whole.count(scan[:2]) < 15
    for start in (0, 1):  # wherever they fall
        bomb = whole[:-2] + b"\0" * start + scan * 101 + whole[-2:]
        with pytest.raises(CorruptImageError, match="scans, wanted at most 100"):
            decode(bomb, cover_px=8, limits=DecodeLimits(max_pixels=1024))


def test_a_large_bmp_of_run_lengths_is_refused():
    """Pillow decodes it in Python; a small one is read."""
    assert pixels(run_length_bmp(33))[0][0] == [255, 0, 0]
    with pytest.raises(TooManyPixelsError, match="1001 x 1001 pixels in a BMP of run lengths"):
        decode(run_length_bmp(1001), cover_px=8)


@pytest.mark.parametrize("name", FORMATS)
def test_the_pixel_limit_is_configurable_and_inclusive(name: str):
    """32 x 32 is 1,024: that limit lets it in, one less does not."""
    data = encode(NOISE, name)
    assert decode(data, cover_px=32, limits=DecodeLimits(max_pixels=1024)).size == (32, 32)
    with pytest.raises(TooManyPixelsError, match="32 x 32 pixels, wanted at most 1,023"):
        decode(data, cover_px=32, limits=DecodeLimits(max_pixels=1023))


def test_the_byte_limit_is_configurable_and_inclusive():
    """It holds before the format is even looked at."""
    data = encode(NOISE)
    decode(data, cover_px=8, limits=DecodeLimits(max_bytes=len(data)))
    with pytest.raises(ImageTooLargeError, match="wanted at most 10;"):
        decode(b"x" * 11, cover_px=8, limits=DecodeLimits(max_bytes=10))


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("name", ["PNG", "JPEG"])
def test_thin_and_small_pictures_fill_the_crop(name: str, size: tuple[int, int]):
    """A picture smaller than the crop is enlarged, in its own colour."""
    found = load_input(encode(Image.new("RGB", size, (90, 90, 90)), name), PreprocessSpec())
    assert found.shape == (224, 224, 3)
    assert found.dtype == np.uint8
    assert found.min() == found.max() == 90


@pytest.mark.parametrize("size", [(640, 480), (481, 1000), (70, 65), (999, 999)])
@pytest.mark.parametrize("cover_px", [64, 65, 100])
def test_a_large_jpeg_is_decoded_just_large_enough(size: tuple[int, int], cover_px: int):
    """The shorter side stays at or above cover_px and below its double, or is the picture's own."""
    shorter = min(decode(encode(Image.new("RGB", size), "JPEG"), cover_px=cover_px).size)
    assert min(cover_px, *size) <= shorter < 2 * cover_px


def test_a_scaled_decode_answers_like_the_full_one():
    """On a smooth picture the input differs by a few grey levels at most."""
    ramp = np.linspace(0, 255, 512)
    grey = (ramp[:, None] + ramp[None, :]) / 2
    picture = Image.fromarray(np.stack([grey, grey[::-1], grey.T], axis=2).astype(np.uint8))
    data, spec = encode(picture, "JPEG", quality=95), PreprocessSpec(resize_px=64, crop_px=56)
    assert decode(data, cover_px=64).size == (64, 64)
    full = to_input(decode(data, cover_px=512), spec)
    assert np.abs(load_input(data, spec).astype(int) - full).max() <= 4


@pytest.mark.parametrize("size", [(40, 40), (80, 40), (40, 96)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_input_has_the_geometry_of_resize_then_crop(size: tuple[int, int], interpolation: str):
    """On a ramp, scaling to 20 and cropping the centre 10 gives the same picture inside its edge."""
    across = np.linspace(0, 200, size[0])[None, :] + np.linspace(0, 50, size[1])[:, None]
    picture = Image.fromarray(across.astype(np.uint8)).convert("RGB")
    spec = PreprocessSpec(resize_px=20, crop_px=10, interpolation=interpolation)
    small = picture.resize((size[0] // 2, size[1] // 2), getattr(Image.Resampling, interpolation.upper()))
    left, top = (small.width - 10) // 2, (small.height - 10) // 2
    wanted = np.asarray(small.crop((left, top, left + 10, top + 10)), dtype=int)
    difference = np.abs(to_input(picture, spec) - wanted)
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.max() <= 4  # at the edge the crop sees no neighbours


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(1, 96),
    st.integers(0, 96),
    st.sampled_from(["bicubic", "bilinear"]),
)
def test_one_colour_stays_that_colour_at_every_size(size: tuple[int, int], crop_px: int, margin_px: int, name: str):
    """The filter's weights add up to one, and no size is refused."""
    spec = PreprocessSpec(resize_px=crop_px + margin_px, crop_px=crop_px, interpolation=name)
    found = to_input(Image.new("RGB", size, (10, 200, 77)), spec)
    assert found.shape == (crop_px, crop_px, 3)
    assert (found == (10, 200, 77)).all()


def test_no_scaling_keeps_the_centre_square():
    """At its own size a picture is cropped, byte for byte."""
    spec = PreprocessSpec(resize_px=32, crop_px=16)
    assert (to_input(NOISE, spec) == np.asarray(NOISE)[8:24, 8:24]).all()


SMALL = [encode(NOISE.resize((6, 5)), name) for name in FORMATS] + [
    encode(NOISE.resize((6, 5)), "WEBP", lossless=True, exif=oriented(6)),
    encode(NOISE.resize((6, 5)), "TIFF", compression="tiff_lzw"),
    encode(NOISE.resize((6, 5)).convert("P"), "PNG", transparency=0, exif=oriented(5)),
    encode(NOISE.resize((6, 5)), "MPO", save_all=True, append_images=[NOISE]),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # as in production, where a warning is no exception
@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SMALL), st.data())
def test_mutated_bytes_raise_nothing_but_image_errors(data: bytes, draw: st.DataObject):
    """Any flipped bytes and any cut give a picture within the limits or an ImageError."""
    mutated = bytearray(data)
    places = st.integers(0, len(data) - 1) | st.integers(0, min(64, len(data) - 1))
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        mutated[place] = value
    end = draw.draw(st.just(len(data)) | st.integers(0, len(data)))
    try:
        picture = decode(bytes(mutated[:end]), cover_px=4, limits=DecodeLimits(max_pixels=10_000))
    except ImageError:
        return
    assert picture.mode == "RGB"
    assert picture.width * picture.height <= 10_000


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("cover_px", [20, 60, 400])
def test_jpegs_get_the_pixels_that_pillow_gives(mode: str, cover_px: int):
    """The fast way is only faster: at full size and at every scale of the decoder."""
    data = encode(NOISE.resize((131, 77)).convert(mode), "JPEG")
    with Image.open(BytesIO(data)) as image:
        image.draft(None, (cover_px, cover_px))
        wanted = np.asarray(image.convert("RGB"))
    assert (np.asarray(decode(data, cover_px=cover_px)) == wanted).all()
