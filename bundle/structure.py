"""Refuse pictures whose parts would keep a parser busy long before the first pixel.

Pillow walks them in Python, one by one, when it opens a file: 20 MB of empty JPEG segments take 7 s and 0.7 GB, Exif in
many segments is put together in quadratic time (3 MB: a minute), a TIFF's 5 million strips take 26 s and 1.2 GB. Here
they are counted, up to a limit that no camera and no program comes near, in at most a few milliseconds.
"""

from collections.abc import Callable
from typing import Final, Literal

_MAX_PARTS: Final = 20_000  # segments, chunks or blocks: PNGs of 20 MB in chunks of 1 KB have so many
_MAX_EXIF_SEGMENTS: Final = 16  # of a JPEG: one, rarely two, of 64 KB at most
_MAX_TIFF_TAGS: Final = 4096
_MAX_TIFF_VALUES: Final = 2**16  # of one tag that is no string of bytes: a strip for each row of a large picture
_BYTE_TYPES: Final = (1, 2, 6, 7)  # BYTE, ASCII, SBYTE, UNDEFINED of TIFF 6.0


def fault(data: bytes, name: str) -> str | None:
    """Return what there is too much of in a file of this format, in words; None where it may be opened."""
    find = _FAULTS.get(name)
    return find(data) if find else None


def _jpeg_fault(data: bytes) -> str | None:
    """Walk the markers up to the first scan, as Pillow does: ITU T.81, annex B, with fill bytes and junk."""
    place, exif_count = 2, 0
    for _ in range(_MAX_PARTS):
        if place + 4 > len(data):
            return None
        marker = data[place + 1]
        if data[place] != 0xFF or marker in (0x00, 0xFF):
            place += 1
        elif marker == 0xDA:
            return None
        elif 0xD0 <= marker <= 0xD9 or marker == 0x01:  # without a length
            place += 2
        else:
            exif_count += marker == 0xE1 and data.startswith(b"Exif\0\0", place + 4)
            if exif_count > _MAX_EXIF_SEGMENTS:
                return f"more than {_MAX_EXIF_SEGMENTS} segments of Exif"
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return f"more than {_MAX_PARTS:,} segments or bytes between them before its first scan"


def _png_fault(data: bytes) -> str | None:
    """Walk the chunks, also those after the pixels: PNG, third edition, 5.3."""
    place = 8
    for _ in range(_MAX_PARTS):
        if place + 12 > len(data) or data.startswith(b"IEND", place + 4):  # whatever follows, nobody reads
            return None
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return f"more than {_MAX_PARTS:,} chunks"


def _gif_fault(data: bytes) -> str | None:
    """Walk the extensions up to the first picture: GIF89a, 15 and 24 to 26."""
    if len(data) < 13:
        return None
    place = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    is_inside = False  # of an extension
    for _ in range(_MAX_PARTS):
        if place >= len(data):
            return None
        first = data[place]
        if is_inside:
            place += 1 + first
            is_inside = first != 0
        elif first == 0x21:
            place, is_inside = place + 2, True
        elif first in (0x2C, 0x3B):
            return None
        else:
            place += 1
    return f"more than {_MAX_PARTS:,} blocks before its first picture"


def _tiff_fault(data: bytes) -> str | None:
    """Look at the first directory: TIFF 6.0, section 2, and BigTIFF, whose numbers have 8 bytes."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    is_big = b"+" in data[2:4]
    number_bytes, count_bytes = (8, 8) if is_big else (4, 2)

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)

    start = number(number_bytes, number_bytes)  # of BigTIFF behind two more words
    tag_count = number(start, count_bytes)
    if tag_count > _MAX_TIFF_TAGS:
        return f"{tag_count:,} tags"
    for tag in range(tag_count):
        place = start + count_bytes + tag * (4 + 2 * number_bytes)
        value_count = number(place + 4, number_bytes)
        if value_count > _MAX_TIFF_VALUES and number(place + 2, 2) not in _BYTE_TYPES:
            return f"{value_count:,} values of one tag"
    return None


_FAULTS: Final[dict[str, Callable[[bytes], str | None]]] = {
    "JPEG": _jpeg_fault,
    "PNG": _png_fault,
    "GIF": _gif_fault,
    "TIFF": _tiff_fault,
}
