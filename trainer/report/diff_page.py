"""The gallery of `trainer diff`: one HTML file, no script, no request, for light and dark, for a desk and for a phone.

Labels and paths come from whoever made the data: Jinja escapes them, and the page's policy allows only its own style
and the pictures inside it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2
from PIL import Image

from bundle.errors import ImageError
from bundle.preprocess import decode
from trainer.diff import KINDS, Change, Difference
from trainer.report.pictures import data_uri

MAX_SHOWN: Final = 100  # of each kind: 300 thumbnails make about 3 MB
_THUMBNAIL_PX: Final = 240
_TITLES: Final = {
    "broken": "Broken: right before, wrong now",
    "fixed": "Fixed: wrong before, right now",
    "changed": "Changed: wrong before, otherwise wrong now",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture of the gallery."""

    change: Change
    name: str  # the path below the data folder
    thumbnail: str  # data URI, empty where the file can no longer be read


@dataclass(frozen=True, kw_only=True)
class Section:
    """All that changed in one way."""

    kind: str
    title: str
    count: int
    cards: tuple[Card, ...]


def write_page(difference: Difference, target: Path) -> None:
    """Write the gallery; raises OSError."""
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(render(difference), encoding="utf-8")
    partial.replace(target)


def render(difference: Difference) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}".replace("%", " %")
    sections = [_section(difference, kind) for kind in KINDS]
    return environment.get_template("diff.html").render(difference=difference, sections=sections)


def shown_name(change: Change, data: Path) -> str:
    """Return a picture's path below the data folder, or as it is where it lies elsewhere."""
    return str(change.path.relative_to(data) if change.path.is_relative_to(data) else change.path)


def _section(difference: Difference, kind: str) -> Section:
    changes = [change for change in difference.changes if change.kind == kind]
    cards = tuple(
        Card(change=change, name=shown_name(change, difference.data), thumbnail=_thumbnail(change.path))
        for change in changes[:MAX_SHOWN]
    )
    return Section(kind=kind, title=_TITLES[kind], count=len(changes), cards=cards)


def _thumbnail(path: Path) -> str:
    try:
        picture = decode(path.read_bytes(), cover_px=_THUMBNAIL_PX)
    except (OSError, ImageError):  # gone or changed since it was answered
        return ""
    picture.thumbnail((2 * _THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BICUBIC)
    return data_uri(picture)
