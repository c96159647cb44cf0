"""Picture files of every format and kind, and ways to break them that know what a file is made of."""

import struct
import zlib
from io import BytesIO

from hypothesis import strategies as st
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TELLING = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def _encoded(mode, file_format, size=(37, 29), **options):
    image = Image.radial_gradient("L").resize(size)
    image = image.convert("RGB").convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")
    out = BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _animated(file_format):
    frames = [Image.new("RGB", (19, 23), (60 * number, 0, 0)) for number in range(3)]
    out = BytesIO()
    frames[0].save(out, file_format, save_all=True, append_images=frames[1:])
    return out.getvalue()


def tiled_tiff(tile_px):
    """A grey TIFF of 16 x 16 pixels in one tile, whose samples are there where the tile is no larger."""
    tags = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (322, tile_px), (323, tile_px), (324, 134), (325, 256)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(16) + bytes(range(256))


def run_length_bmp(side, value=1):
    """A BMP of RLE8 in one of four colours: each row one run after another, all in red where the value is 1."""
    runs = [min(255, side - start) for start in range(0, side, 255)]
    row = b"".join(bytes([run, value]) for run in runs) + b"\0\0"
    palette, body = bytes([0, 0, 0, 0, 0, 0, 255, 0, 0, 255, 0, 0, 255, 0, 0, 0]), row * side + b"\0\1"
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 2835, 2835, 4, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


WHOLE = [
    tiled_tiff(16),
    run_length_bmp(33),
    _encoded("RGB", "JPEG"),
    _encoded("L", "JPEG"),
    _encoded("CMYK", "JPEG"),
    _encoded("RGB", "JPEG", progressive=True, quality=30),
    _encoded("RGB", "JPEG", subsampling=2, exif=_exif(6), optimize=True),
    _encoded("RGB", "JPEG", size=(200, 120), exif=_exif(3), restart_marker_blocks=4),
    *(_encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    _encoded("P", "PNG", transparency=3),
    _encoded("RGB", "PNG", transparency=(0, 0, 0), exif=_exif(5)),
    *(_encoded(mode, "WEBP") for mode in ("RGB", "RGBA")),
    _encoded("RGB", "WEBP", lossless=True, exif=_exif(8)),
    *(_encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(_encoded(mode, "GIF") for mode in ("L", "P")),
    *(_encoded(mode, "TIFF") for mode in ("1", "L", "RGB", "RGBA", "CMYK", "I;16", "F")),
    *(_encoded("RGB", "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    _encoded("RGB", "TIFF", big_tiff=True),
    *(_animated(name) for name in ("GIF", "PNG", "WEBP", "TIFF")),
]


@st.composite
def broken_files(draw):
    """A whole file after one to six changes; a PNG's checksums are put right again, or nothing behind them is seen."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 6))):
        change = draw(st.sampled_from(CHANGES))
        change(data, draw)
    if data.startswith(PNG_MAGIC) and draw(st.booleans()):
        return _with_checksums(data)
    return bytes(data)


def _place(data, draw):
    # Half of the time near the start, where the headers are.
    last = max(0, min(len(data), draw(st.sampled_from([64, 512, len(data)]))) - 1)
    return draw(st.integers(0, last))


def _flip(data, draw):
    if data:
        data[_place(data, draw)] ^= 1 << draw(st.integers(0, 7))


def _write_number(data, draw):
    layout = draw(st.sampled_from(["<B", "<H", ">H", "<I", ">I"]))
    size = struct.calcsize(layout)
    place = _place(data, draw)
    number = draw(st.sampled_from(TELLING)) & (256**size - 1)
    data[place : place + size] = struct.pack(layout, number)


def _cut(data, draw):
    del data[_place(data, draw) :]


def _delete(data, draw):
    place = _place(data, draw)
    del data[place : place + draw(st.integers(1, 64))]


def _repeat(data, draw):
    place = _place(data, draw)
    part = data[place : place + draw(st.integers(1, 64))]
    data[place:place] = part * draw(st.integers(1, 20))


def _insert(data, draw):
    place = _place(data, draw)
    data[place:place] = draw(st.binary(max_size=32))


def _graft(data, draw):
    """The end of another file, of whatever format."""
    other = draw(st.sampled_from(WHOLE))
    data[_place(data, draw) :] = other[_place(other, draw) :]


def _announce_another_size(data, draw):
    """Width and height where each format keeps them: JPEG's frame header, TIFF's tags 256 and 257."""
    width, height = (draw(st.sampled_from([0, 1, 1000, 1500, 16383, 30000, 65535])) for _ in range(2))
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    if data[:2] == b"\xff\xd8" and frame > 0:
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif data[:4] == b"\x89PNG":
        data[16:24] = struct.pack(">II", width, height)
    elif data[:3] == b"GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif data[:2] == b"BM":
        data[18:26] = struct.pack("<II", width, height)
    elif data[12:16] == b"VP8X":
        data[24:30] = width.to_bytes(3, "little") + height.to_bytes(3, "little")
    elif data[12:16] == b"VP8 ":
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    else:
        for tag, number in ((b"\x00\x01", width), (b"\x01\x01", height)):
            place = max(data.find(tag + kind) for kind in (b"\x03\x00\x01\x00", b"\x04\x00\x01\x00"))
            if place >= 0:
                data[place + 8 : place + 12] = struct.pack("<I", number)


CHANGES = [_announce_another_size, _flip, _flip, _write_number, _write_number, _cut, _delete, _repeat, _insert, _graft]


def _with_checksums(data):
    out, rest = bytearray(PNG_MAGIC), bytes(data[8:])
    while len(rest) >= 12:
        length = min(int.from_bytes(rest[:4], "big"), len(rest) - 12)
        body = rest[4 : 8 + length]
        out += rest[:4] + body + zlib.crc32(body).to_bytes(4, "big")
        rest = rest[12 + length :]
    return bytes(out + rest)
