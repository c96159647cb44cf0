"""The report as a browser shows it: whole, quiet, readable in light and dark, at a desk and on a phone."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from tests.browser import visit
from trainer.report.render import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("page") / "report.html"
    write_report(hostile_run, target)
    return target.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_page_is_whole_quiet_and_fits(
    browser: "Browser", page: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    """No broken picture, no message, no request, no sideways scrolling; text contrast as WCAG AA wants it."""
    with visit(browser, page, width=width, scheme=scheme) as seen:
        assert seen.page.locator("img").count() > 10
        assert seen.page.locator("svg.plot").count() == 4
        assert seen.broken_pictures() == []
        assert seen.console == []
        assert seen.requests == []
        assert seen.overflow_px() <= 0
        assert seen.worst_contrast() > (4.5, "")


def test_schemes_differ(browser: "Browser", page: str) -> None:
    """Paper is light by day and dark by night, and diagrams follow."""

    def colours(scheme: Literal["light", "dark"]) -> list[str]:
        with visit(browser, page, scheme=scheme) as seen:
            script = "(s) => getComputedStyle(document.querySelector(s)).%s"
            return [
                seen.page.evaluate(script % "backgroundColor", "body"),
                seen.page.evaluate(script % "fill", "svg.plot text"),
            ]

    light, dark = colours("light"), colours("dark")
    assert all(here != there for here, there in zip(light, dark, strict=True))


def test_page_can_be_read_aloud(browser: "Browser", page: str) -> None:
    """Every picture and diagram has a text, every table headers, every id is there once."""
    with visit(browser, page) as seen:
        count = seen.page.evaluate
        assert count("() => [...document.images].filter(i => !i.alt.trim()).length") == 0
        assert count("() => document.querySelectorAll('svg.plot:not([role=img][aria-label])').length") == 0
        assert count("() => [...document.querySelectorAll('table')].filter(t => !t.querySelector('th')).length") == 0
        assert count("() => document.querySelectorAll('th:not([scope])').length") == 0
        assert count("() => document.querySelectorAll('h1').length") == 1
        repeated = "() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.filter((id, i) => ids.indexOf(id) !== i); }"  # noqa: E501
        assert count(repeated) == []


def test_broken_page_is_noticed(browser: "Browser", tmp_path: Path) -> None:
    """The checks above can fail: each finds its own fault."""
    (tmp_path / "bad.html").write_text(
        "<body style='background: #fff'><img alt='gone' src='gone.png'><p style='color: #ccc; width: 900px'>pale</p>"
        "<script>console.error('oh'); throw new Error('no')</script>"
    )
    with visit(browser, (tmp_path / "bad.html").as_uri(), width=360) as seen:
        assert seen.broken_pictures() == ["gone"]
        assert {"oh", "no"} <= set(seen.console)
        assert [Path(asked).name for asked in seen.requests] == ["gone.png"]
        assert seen.overflow_px() > 500
        ratio, text = seen.worst_contrast()
        assert (ratio < 2, text) == (True, "pale")
