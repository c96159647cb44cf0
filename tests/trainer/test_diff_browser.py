"""The gallery of `trainer diff` as a browser shows it: whole, quiet, readable in light and dark, at any width."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from PIL import Image

from bundle.manifest import Interval
from bundle.scores import Ranked
from tests.browser import visit
from trainer.diff import Change, Difference
from trainer.report.diff_page import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
LONG = "<b>&" + "longlabel" * 20


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    answers = [("rose", LONG), (LONG, "rose"), ("tulip", LONG), ("rose", "tulip")]
    changes = []
    for number, (before, after) in enumerate(answers):
        path = folder / LONG[4:] / f"{number}.png"
        if number < 3:  # the last has gone meanwhile
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (900, 30) if number else (30, 900), "teal").save(path)
        first, second = (Ranked(index=0, label=label, score=0.99) for label in (before, after))
        changes.append(Change(path=path, truth="rose", before=first, after=second))
    share = Interval(value=0.5, low=0.2, high=0.8)
    difference = Difference(
        before=Path("models/flowers/1"),
        after=Path("models/flowers/2"),
        data=folder,
        picture_count=9,
        accuracy_before=share,
        accuracy_after=share,
        p_value=0.625,
        changes=tuple(changes),
    )
    write_page(difference, folder / "diff.html")
    return (folder / "diff.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_gallery_is_whole_quiet_and_fits(
    browser: "Browser", page: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    """No broken picture, no message, no request, nothing cut off at a side; text contrast as WCAG AA wants it."""
    cut_off = (
        "() => [...document.querySelectorAll('h1, p, figure, dd')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    with visit(browser, page, width=width, scheme=scheme) as seen:
        assert seen.page.locator("img").count() == 3
        assert seen.broken_pictures() == []
        assert seen.console == []
        assert seen.requests == []
        assert seen.overflow_px() <= 0
        assert seen.page.evaluate(cut_off) == 0
        assert seen.worst_contrast() > (4.5, "")
