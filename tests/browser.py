"""Look at a page in headless Chromium as a person would, and say what is wrong with it. Needs no torch."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_CONTRAST = """() => {  // WCAG 2.2, contrast ratio of all visible text against the first solid background behind it
  const luminance = (c) => {
    const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const channels = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = (node) => {
    for (let e = node; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length && (c.length < 4 || c[3] === 1)) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const worst = { ratio: 21, text: "" };
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!own || e.closest("svg")) continue;
    const [a, b] = [channels(getComputedStyle(e).color).slice(0, 3), behind(e)].map(luminance).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst.ratio) Object.assign(worst, { ratio, text: own.slice(0, 40) });
  }
  return worst;
}"""


@dataclass(kw_only=True)
class Visit:
    """One look at a page: what went wrong while it was loaded, and what it asked for."""

    page: Page
    console: list[str] = field(default_factory=list)  # warnings, errors and exceptions
    requests: list[str] = field(default_factory=list)  # all but the page itself and data: URIs

    def broken_pictures(self) -> list[str]:
        """Return the alternative texts of pictures that did not load."""
        script = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt || i.src)"
        return list(self.page.evaluate(script))

    def overflow_px(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth"))

    def worst_contrast(self) -> tuple[float, str]:
        """Return the lowest contrast ratio of any text, 1 to 21, and the text that has it."""
        worst = self.page.evaluate(_CONTRAST)
        return float(worst["ratio"]), str(worst["text"])


def launch() -> Iterator[Browser]:
    """Yield a browser; skip where there is none, or fail where CALOTYPE_BROWSER=required asks for it."""
    if CHROMIUM is None:
        reason = "found no chromium; `make test-browser` installs it"
        if os.environ.get("CALOTYPE_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, url: str, *, width: int = 1100, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Visit]:
    """Open a page in a window of that width and colour scheme; it has loaded when the block begins."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    seen = Visit(page=page)
    page.on(
        "console", lambda message: seen.console.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: seen.console.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    try:
        page.goto(url)
        seen.requests = [asked for asked in seen.requests if asked != url and not asked.startswith("data:")]
        yield seen
    finally:
        page.close()
