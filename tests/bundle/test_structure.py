"""Pictures of a few pixels and millions of parts: refused before a parser walks them, and no honest one with them."""

import struct
import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bundle import structure
from bundle.errors import CorruptImageError
from bundle.formats import READABLE
from bundle.preprocess import PreprocessSpec, load_input

SPEC = PreprocessSpec(resize_px=32, crop_px=24)
PARTS = 20_000  # the most, with those that every file has


def saved(name):
    file = BytesIO()
    Image.new("RGB", (40, 40), (90, 120, 30)).save(file, name)
    return file.getvalue()


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(extra):
    plain = saved("JPEG")
    return plain[:2] + extra + plain[2:]


def png(extra, *, last=False):
    plain = saved("PNG")
    place = -12 if last else 33  # before IEND, or after IHDR
    return plain[:place] + extra + plain[place:]


def chunk(kind, body=b""):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def gif(extra):
    plain = saved("GIF")
    place = 13 + 3 * (2 << (plain[10] & 7))
    return plain[:place] + extra + plain[place:]


def tiff(tag, kind, count, *, big=False, tags=1):
    """A directory of this one tag, again and again; there are no pixels."""
    if big:
        entry = struct.pack("<HHQQ", tag, kind, count, 0)
        return b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + struct.pack("<Q", tags) + entry * tags
    return b"II*\0" + struct.pack("<L", 8) + struct.pack("<H", tags) + struct.pack("<HHLL", tag, kind, count, 0) * tags


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jpeg(segment(0xE5, b"") * PARTS), "segments"),
        (jpeg(b"\xff" * PARTS), "bytes between them"),
        (jpeg(segment(0xE5, b"") + b"\x00" * PARTS), "bytes between them"),
        (jpeg(segment(0xE1, b"Exif\0\0y") * 5), "more than 4 segments of Exif"),
        (png(chunk(b"prIv") * PARTS), "chunks"),
        (png(chunk(b"prIv") * PARTS, last=True), "chunks"),
        (gif(b"\x21\xfe" + b"\x01A" * PARTS + b"\0"), "blocks"),
        (gif(b"\x00" * PARTS), "blocks"),
        (gif(b"!\x01\x00" + b"\x01," * PARTS), "blocks"),  # Pillow takes the first one for no end
        (gif(b"!\xff\x0bNETSCAPE2.0\x00" + b"\x01," * PARTS), "blocks"),
        (tiff(273, 3, 65_537), "65,537 values of one tag"),
        (tiff(282, 5, 65_537, big=True), "65,537 values of one tag"),
        (tiff(273, 1, 65_537), "65,537 values of one tag"),
        (tiff(279, 2, 65_537), "65,537 values of one tag"),
        (tiff(700, 4, 65_537), "65,537 values of one tag"),
        (tiff(256, 3, 1, tags=4097), "4,097 tags"),
        (tiff(256, 3, 1, tags=4097, big=True), "4,097 tags"),
        (b"MM\0+" + struct.pack(">LHHHLL", 8, 1, 273, 4, 65_537, 0), "65,537 values of one tag"),
        (b"MM\0*" + struct.pack(">LHHHLL", 8, 1, 273, 4, 65_537, 0), "65,537 values of one tag"),
    ],
)
def test_parts_without_end_are_refused_before_anything_is_parsed(data, words, monkeypatch):
    """Where Pillow may not even open it."""
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(CorruptImageError, match=words):
        load_input(data, SPEC)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(segment(0xE5, b"") * (PARTS - 20)),
        jpeg(b"\xff" * (PARTS - 20)),
        jpeg(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0") * 4),
        jpeg(segment(0xE2, b"\xff\xd8\xff\xe1" * 100)),
        png(chunk(b"prIv") * (PARTS - 20)),
        png(chunk(b"prIv", b"IEND" * 100) * 100, last=True),
        saved("PNG") + bytes(20 * PARTS),
        gif(b"\x21\xfe" + b"\x01A" * (PARTS - 20) + b"\0"),
        gif(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0" + b"!\xfe\0" + b"!\xf9\x04\0\0\0\0\0"),
        saved("TIFF"),
        saved("BMP"),
        saved("WEBP"),
    ],
)
def test_many_parts_are_read(data):
    """As many as are allowed, and what looks like a marker inside of one."""
    assert load_input(data, SPEC).shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("tag", "kind", "count"), [(273, 3, 65_536), (700, 7, 10**7), (34675, 1, 10**7), (270, 2, 10**7)]
)
def test_a_tag_may_have_a_strip_for_each_row_and_bytes_as_many_as_there_are(tag, kind, count):
    """Profiles, notes and the description are strings of bytes."""
    assert structure.fault(tiff(tag, kind, count), "TIFF") is None


@given(data=st.binary(max_size=200), name=st.sampled_from(READABLE))
@settings(max_examples=300)
def test_no_bytes_are_too_much_for_it(data, name):
    """It raises nothing, and ends."""
    found = structure.fault(data, name)
    assert found is None or name == "TIFF"


def test_exif_beyond_all_measure_turns_nothing():
    """Two and a half million rationals would be as many objects; a turned picture with little of it is turned."""

    def turned(count):
        values = struct.pack("<LL", 6, 1) * count
        exif = b"II*\0\x08\0\0\0" + struct.pack(
            "<HHHLLL", 1, 0x112, 5 if count > 1 else 3, count, 26 if count > 1 else 6, 0
        )
        plain = BytesIO()
        Image.linear_gradient("L").convert("RGB").save(plain, "PNG")
        data = plain.getvalue()
        return load_input(data[:33] + chunk(b"eXIf", exif + values) + data[33:], SPEC)

    upright = turned(40_000)
    assert (turned(1) != upright).any()
    assert upright[0].mean() < upright[-1].mean()


def test_other_segments_of_the_same_number_are_no_exif():
    """XMP, of which large ones come in many."""
    name = b"http://ns.adobe.com/xmp/extension/\0"
    xmp = b"\xff\xe1" + struct.pack(">H", 2 + len(name)) + name
    assert structure.fault(b"\xff\xd8" + 50 * xmp + b"\xff\xda", "JPEG") is None
