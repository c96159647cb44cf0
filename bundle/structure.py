"""Refuse pictures whose parts would keep a parser busy long before the first pixel.

Pillow walks them in Python, one by one, when it opens a file: 20 MB of empty JPEG segments take 7 s and 0.7 GB, Exif in
many segments is put together in quadratic time (3 MB: a minute), a TIFF's 5 million strips take 26 s and 1.2 GB. Here
they are counted, up to a limit that no camera and no program comes near, in some ten milliseconds at most.
"""

from collections.abc import Callable
from typing import Final, Literal

from bundle.formats import jpeg_parts

_MAX_PARTS: Final = 20_000  # segments, chunks or blocks: PNGs of 20 MB in chunks of 1 KB have so many
_MAX_EXIF_SEGMENTS: Final = 4  # of a JPEG: one, rarely two, of 64 KB at most
_MAX_TIFF_TAGS: Final = 4096
_MAX_TIFF_VALUES: Final = 2**16  # of one tag: a strip for each row of a large picture
_BYTE_TYPES: Final = (1, 2, 6, 7)  # BYTE, ASCII, SBYTE, UNDEFINED of TIFF 6.0: one object, of a tag that nobody walks
_DESCRIPTION: Final = 270
_FIRST_OTHER: Final = 700  # of the tags that do not tell how the pixels lie: profiles, previews, notes
_LOOP: Final = b"\xff\x0bNETSCAPE2.0"  # the extension of a GIF that says how often
_EXIF: Final = 0xE1  # APP1 of a JPEG


def fault(data: bytes, name: str) -> str | None:
    """Return what there is too much of in a file of this format, in words; None where it may be opened."""
    find = _FAULTS.get(name)
    return find(data) if find else None


def _jpeg_fault(data: bytes) -> str | None:
    exif_count = 0
    for count, (marker, place) in enumerate(jpeg_parts(data)):
        if count == _MAX_PARTS:
            return f"more than {_MAX_PARTS:,} segments or bytes between them before its first scan"
        exif_count += marker == _EXIF and data.startswith(b"Exif\0\0", place + 4)
        if exif_count > _MAX_EXIF_SEGMENTS:
            return f"more than {_MAX_EXIF_SEGMENTS} segments of Exif"
    return None


def _png_fault(data: bytes) -> str | None:
    """Walk the chunks, also those after the pixels: PNG, third edition, 5.3."""
    place = 8
    for _ in range(_MAX_PARTS):
        if place + 12 > len(data) or data.startswith(b"IEND", place + 4):  # whatever follows, nobody reads
            return None
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return f"more than {_MAX_PARTS:,} chunks"


def _gif_fault(data: bytes) -> str | None:
    """Walk the extensions up to the first picture: GIF89a, 15 and 24 to 26, and where Pillow reads on after an end."""
    if len(data) < 13:
        return None
    place = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    count = 0
    while count < _MAX_PARTS:
        count += 1
        first = data[place : place + 1]
        if first in (b"", b",", b";"):
            return None
        place += 1
        if first != b"!":
            continue
        is_comment, is_loop = data.startswith(b"\xfe", place), data.startswith(_LOOP, place)
        taken_anyhow = 0 if is_comment else 2 if is_loop else 1  # blocks that Pillow takes for no end, also empty ones
        place += 1
        while count < _MAX_PARTS:
            count += 1
            size = data[place] if place < len(data) else 0
            place += 1 + size
            taken_anyhow -= 1
            if not size and taken_anyhow < 0:
                break
    return f"more than {_MAX_PARTS:,} blocks before its first picture"


def _tiff_fault(data: bytes) -> str | None:
    """Look at the first directory: TIFF 6.0, section 2, and BigTIFF, whose numbers have 8 bytes."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    is_big = data[2:3] == b"+"  # of the other order Pillow takes it for a classic one
    number_bytes, count_bytes = (8, 8) if is_big else (4, 2)

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], order)

    start = number(number_bytes, number_bytes)  # of BigTIFF behind two more words
    tag_count = number(start, count_bytes)
    if tag_count > _MAX_TIFF_TAGS:
        return f"{tag_count:,} tags"
    for tag in range(tag_count):
        place = start + count_bytes + tag * (4 + 2 * number_bytes)
        name, kind, value_count = number(place, 2), number(place + 2, 2), number(place + 4, number_bytes)
        is_one_object = kind in _BYTE_TYPES and (name == _DESCRIPTION or name >= _FIRST_OTHER)
        if value_count > _MAX_TIFF_VALUES and not is_one_object:
            return f"{value_count:,} values of one tag"
    return None


_FAULTS: Final[dict[str, Callable[[bytes], str | None]]] = {
    "JPEG": _jpeg_fault,
    "PNG": _png_fault,
    "GIF": _gif_fault,
    "TIFF": _tiff_fault,
}
