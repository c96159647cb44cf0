"""What decoding a picture takes of memory: in bands, counted before it is allocated, never more than was counted."""

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import formats, upright
from bundle.errors import TooManyPixelsError, UnsupportedFormatError
from bundle.preprocess import DecodeLimits, decode

ROOT = Path(__file__).parents[2]
MODES = {  # a mode that Pillow writes, by format
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "JPEG": ("L", "RGB", "CMYK"),
}
EACH = [(name, mode) for name, modes in MODES.items() for mode in modes]
DECODES = """
import re, sys
from pathlib import Path
from bundle.preprocess import DecodeLimits, PreprocessSpec, load_input
def status(field):
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
spec = PreprocessSpec()
load_input(Path(sys.argv[1]).read_bytes(), spec)  # what stays: libraries, their tables
for path in map(Path, sys.argv[2:]):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    load_input(data, spec)
    print(path.name, status("VmHWM") - before)
"""


def gradient(mode, size):
    """A picture with another value at almost every pixel, also of alpha."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    if mode == "I;16":
        return Image.fromarray(((rows * 977 + columns * 131) % 65_536).astype(np.uint16))
    parts = [rows * 3 + columns, rows + columns * 5, rows * 7, 255 - (rows + columns)]
    whole = Image.fromarray(np.stack(parts, axis=2).astype(np.uint8), "RGBA")
    return whole if mode == "RGBA" else whole.convert("RGB").convert(mode) if mode != "LA" else whole.convert("LA")


def encode(picture, name, **options):
    buffer = BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(37, 11), (11, 37), (20, 20)])
@pytest.mark.parametrize(("name", "mode"), [*EACH, ("PNG", "clear P"), ("GIF", "clear P"), ("PNG", "clear I;16")])
def test_bands_change_no_pixel(monkeypatch, name, mode, size):
    """In bands of three lines, the last of them shorter, and as a whole: every type of pixel, upright and turned."""
    options = {"transparency": 5} if mode.startswith("clear") else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(gradient(mode.removeprefix("clear "), size), name, exif=exif, **options)
    whole = np.asarray(decode(data, cover_px=8))
    monkeypatch.setattr(upright, "_BAND_PIXELS", 3 * min(size))
    assert np.array_equal(np.asarray(decode(data, cover_px=8)), whole)


def test_an_unread_type_of_pixel_is_refused_in_bands_too(monkeypatch):
    """By its name."""
    monkeypatch.setattr(upright, "_BAND_PIXELS", 4)
    with pytest.raises(UnsupportedFormatError, match="'F'"):
        decode(encode(Image.new("F", (8, 8)), "TIFF"), cover_px=8)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is not told here")
def test_no_decoding_takes_more_than_was_counted(tmp_path):
    """Under a limit of what it takes, every picture is refused; 4 MB are for a band and for what is told in pages."""
    files = {}
    for name, mode in EACH:
        plain = {"PNG": {"compress_level": 1}, "WEBP": {"quality": 1, "method": 0}}.get(name, {})
        files[f"{name}-{mode}"] = encode(gradient(mode, (2000, 2000)), name, **plain)
    for mode in MODES["JPEG"]:
        files[f"progressive-{mode}"] = encode(gradient(mode, (2000, 2000)), "JPEG", progressive=True, subsampling=0)
    files["narrow"] = encode(gradient("CMYK", (300, 13_333)), "JPEG", progressive=True, subsampling=0)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", DECODES, *(str(tmp_path / name) for name in ("PNG-RGB", *files))]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    taken = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert taken.keys() == files.keys()
    assert max(taken.values()) > 4_000_000 * 14  # WebP: it is the peak that was read
    for name, count in taken.items():
        with pytest.raises(TooManyPixelsError):
            decode(files[name], cover_px=256, limits=DecodeLimits(max_decoding_bytes=count - 2**22))


def counted_bytes(data):
    """The smallest limit at which a picture is decoded."""
    low, high = 0, 2**31
    while low < high:
        middle = (low + high) // 2
        try:
            decode(data, cover_px=256, limits=DecodeLimits(max_decoding_bytes=middle))
            high = middle
        except TooManyPixelsError:
            low = middle + 1
    return low


def test_memory_is_counted_before_it_is_allocated():
    """8 bytes a pixel, 17 of a WebP; of a JPEG those at its scale, and the coefficients where they are kept."""
    picture = gradient("RGB", (320, 320))
    counted = {name: counted_bytes(encode(picture, name)) for name in ("PNG", "GIF", "BMP", "TIFF", "WEBP")}
    assert counted == {**dict.fromkeys(("PNG", "GIF", "BMP", "TIFF"), 8 * 320**2), "WEBP": 17 * 320**2}
    large = gradient("RGB", (2560, 2560))  # 320 at an eighth
    assert counted_bytes(encode(large, "JPEG")) == 8 * 320**2
    assert counted_bytes(encode(large, "JPEG", progressive=True)) == 8 * 320**2 + 2 * 3 * 2560**2
    assert counted_bytes(encode(large.convert("L"), "JPEG", progressive=True)) == 8 * 320**2 + 2 * 2560**2


def test_the_refusal_tells_what_a_picture_would_take():
    """Found, wanted, and what to do."""
    data = encode(Image.new("RGB", (1000, 2000)), "PNG")
    wanted = "1000 x 2000 pixels, 16 MB while this PNG is decoded, wanted at most 15 MB; send a smaller copy"
    with pytest.raises(TooManyPixelsError, match=wanted):
        decode(data, cover_px=8, limits=DecodeLimits(max_decoding_bytes=15_000_000))


SOI, SCAN = b"\xff\xd8", b"\xff\xda\x00\x08%c" + bytes(8)
THUMBNAIL = b"\xff\xe1\x00\x20" + b"\xff\xda\x00\x08\x01".ljust(30, b"\0")  # its scan is not ours
FRAME = b"\xff%c\x00\x11\x08\x00\x10\x00\x10\x03" + bytes(9)


@pytest.mark.parametrize(
    ("data", "is_kept"),
    [
        (SOI + FRAME % 0xC0 + SCAN % 3, False),
        (SOI + FRAME % 0xC0 + SCAN % 1, True),
        (SOI + FRAME % 0xC1 + SCAN % 2, True),
        (SOI + FRAME % 0xC2 + SCAN % 3, True),
        (SOI + THUMBNAIL + b"\xff\xff" + FRAME % 0xC0 + SCAN % 3, False),
        (SOI + THUMBNAIL + b"\xff\xff" + FRAME % 0xC0 + SCAN % 1, True),
        (SOI + THUMBNAIL + b"junk\xff\x00" + FRAME % 0xC2 + SCAN % 3, True),  # decoders skip it
        (SOI + FRAME % 0xC0, False),
        (SOI + b"\xff" * 100, False),
        (SOI, False),
    ],
)
def test_a_jpeg_that_is_kept_whole_is_known_by_its_first_scan(data, is_kept):
    """Progressive, or with components in scans of their own: whatever a thumbnail in front of it says."""
    assert formats.is_jpeg_kept_whole(data) is is_kept
