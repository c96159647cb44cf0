"""The page in headless Chromium, before a real server: choose, drop, paste, errors, keyboard, phone, light and dark."""

import os
import re
from contextlib import contextmanager

import pytest
import tiny_bundle
from playwright.sync_api import expect
from test_process import port, process

from serving.tokens import new_token
from tests.browser import visit

pytestmark = pytest.mark.browser
expect.set_options(timeout=20_000)  # milliseconds: a busy machine is no failure

_DATA = """([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const %s
}"""
_DROP = (
    _DATA % 'event = new DragEvent("drop", { dataTransfer: data, bubbles: true }); document.body.dispatchEvent(event);'
)
_PASTE = _DATA % 'event = new ClipboardEvent("paste", { clipboardData: data }); document.dispatchEvent(event);'


_KEEP_STATUS = """() => {
  const status = document.getElementById("status");
  window.told = [];
  new MutationObserver(() => told.push(status.textContent)).observe(status, { childList: true });
}"""
_PASTE_TEXT = """(text) => {
  const data = new DataTransfer();
  data.setData("text/plain", text);
  document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server of two models, of one of them not the newest version."""
    models = tmp_path_factory.mktemp("served")
    for name in ("colours", "colours", "shades"):
        tiny_bundle.write(models, name=name)
    with process(models, "--http-address", ":0", "--pin", "colours=1") as started:
        yield f"http://127.0.0.1:{port(started, 'http_port')}/"


def upload(label, *, name=None, data=None):
    content = tiny_bundle.picture(label, size=(480, 400)) if data is None else data
    return {"name": name or f"{label}.png", "mimeType": "image/png", "buffer": content}


@contextmanager
def asked_for_a_token(browser, folder, *, requests_per_s):
    """The page of a server that wants a token, which has been asked for, and the one that is right."""
    tiny_bundle.write(folder / "models")
    token, line = new_token("alice", requests_per_s=requests_per_s)
    (folder / "tokens").write_text(str(line))
    options = ("--http-address", ":0", "--tokens", str(folder / "tokens"))
    with (
        process(folder / "models", *options) as started,
        visit(browser, f"http://127.0.0.1:{port(started, 'http_port')}/") as seen,
    ):
        expect(seen.page.locator("#token")).to_be_focused()
        yield seen, token


def cards(page):
    return page.locator(".card")


def keep(page, name):
    """Write a picture of the page where CALOTYPE_SCREENSHOTS names a folder: a person should look at it."""
    if folder := os.environ.get("CALOTYPE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_pictures_are_answered_quietly_in_both_schemes_at_any_width(browser, url, width, scheme):
    """Labels, bars, time and version; a bad one in words. No message, no foreign request, no sideways scrolling."""
    with visit(browser, url, width=width, scheme=scheme) as seen:
        page = seen.page
        long_name = "a-very-long-file-name-without-any-space-" * 4 + ".png"
        files = [upload("red", name=long_name), upload("green"), upload("blue", name="notes.png", data=b"no picture")]
        page.locator("#files").set_input_files(files)
        expect(page.locator(".bars")).to_have_count(2)
        expect(page.locator(".wrong")).to_have_text("This is not a picture.")
        expect(page.locator("#status")).to_have_text("")
        expect(page.locator("#about")).to_contain_text("colours, version 1, tells 3 things apart")
        red = cards(page).filter(has_text="a-very-long")
        expect(red.locator(".bars li").first).to_have_text("red93.5 %")
        expect(red.locator(".facts")).to_contain_text("ms in the server) · colours, version 1")
        assert red.locator("img").evaluate("image => image.naturalWidth") == 480
        expect(cards(page).filter(has_text="notes.png").locator(".nothumb")).to_be_visible()
        page.evaluate("() => Promise.all(document.getAnimations().map((one) => one.finished))")
        shares = red.locator(".bars li").first.evaluate("row => row.querySelector('i').offsetWidth / row.offsetWidth")
        assert shares == pytest.approx(0.935, abs=0.01)
        assert seen.console == []
        assert all(asked.startswith((url, f"blob:{url}")) for asked in seen.requests)
        assert seen.overflow_px() <= 0
        assert seen.worst_contrast() > (4.5, "")
        keep(page, f"page-{scheme}-{width}")


def test_a_phone_shows_the_answer_without_scrolling(browser, url):
    """And what a field is can be seen: its border stands out."""
    with visit(browser, url, width=360) as seen:
        seen.page.set_viewport_size({"width": 360, "height": 740})
        seen.page.locator("#files").set_input_files([upload("red")])
        seen.page.locator(".bars").wait_for()
        expect(seen.page.locator(".bars li").first).to_be_in_viewport(ratio=1)
        keep(seen.page, "page-phone")


def test_the_default_model_is_asked_first(browser, tmp_path):
    """Not the first by name."""
    for name in ("colours", "shades"):
        tiny_bundle.write(tmp_path, name=name)
    with (
        process(tmp_path, "--http-address", ":0", "--default-model", "shades") as started,
        visit(browser, f"http://127.0.0.1:{port(started, 'http_port')}/") as seen,
    ):
        seen.page.locator("#files").set_input_files([upload("red")])
        expect(seen.page.locator(".facts")).to_contain_text("shades, version 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_of_something_else_is_said_to_be(browser, url, scheme):
    """Above the bars, in words that can be read in both schemes; a known picture has no such line."""
    with visit(browser, url, scheme=scheme) as seen:
        page = seen.page
        page.locator("#files").set_input_files([upload("red"), upload("other", data=tiny_bundle.foreign())])
        expect(page.locator(".bars")).to_have_count(2)
        expect(cards(page).filter(has_text="other.png").locator(".unlike")).to_contain_text("Unlike anything")
        expect(page.locator(".unlike")).to_have_count(1)
        assert seen.worst_contrast() > (4.5, "")
        keep(page, f"page-unlike-{scheme}")


def test_a_picture_that_comes_before_the_models_are_known_waits_for_them(browser, url):
    """The list is held back; the drop is answered by the model that is then chosen."""
    page, held = browser.new_page(), []
    page.route("**/v1/models", lambda route: held.append(route))
    with page.expect_request("**/v1/models"):
        page.goto(url)
    page.evaluate(_DROP, [list(tiny_bundle.picture("green")), "early.png"])
    expect(page.locator("#status")).to_have_text("Looking at 1 picture …")
    held[0].continue_()
    expect(cards(page).locator(".bars li").first).to_contain_text("green")
    page.close()


def test_dropped_and_pasted_pictures_are_answered(browser, url):
    """A drop anywhere; a paste, which has no file to name it; and a drop of text says so."""
    with visit(browser, url) as seen:
        page = seen.page
        page.evaluate(_DROP, [list(tiny_bundle.picture("green")), "dropped.png"])
        expect(cards(page).filter(has_text="dropped.png").locator(".bars li").first).to_contain_text("green")
        page.evaluate(_PASTE, [list(tiny_bundle.picture("blue")), "pasted.png"])
        expect(cards(page).first.locator(".bars li").first).to_contain_text("blue")
        page.evaluate(
            "() => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))"
        )
        expect(page.locator("#status")).to_have_text("There is no picture in the clipboard.")
        assert seen.console == []


def test_everything_is_reached_with_the_keyboard(browser, url):
    """Tab to the model and the button, Enter opens the file chooser."""
    with visit(browser, url) as seen:
        page = seen.page
        page.on("filechooser", lambda _: None)  # now, or on a busy machine the dialog opens before it is listened to
        expect(page.locator("#chooser")).to_be_visible()
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.id") == "model"
        page.keyboard.press("ArrowDown")
        expect(page.locator("#about")).to_contain_text("shades, version 1, tells 3 things apart: blue, green, red")
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.id") == "choose"
        with page.expect_file_chooser(timeout=20_000) as chosen:
            page.keyboard.press("Enter")
        chosen.value.set_files([upload("red")])
        expect(cards(page).locator(".facts")).to_contain_text("shades, version 1")


def test_a_label_or_file_name_never_becomes_markup(browser, url):
    """Names are shown as they are."""
    with visit(browser, url) as seen:
        name = "<img src=x onerror=alert(1)>.png"
        seen.page.locator("#files").set_input_files([upload("red", name=name)])
        expect(seen.page.locator(".card h2")).to_have_text(name)
        assert seen.page.locator(".card h2 img").count() == 0
        assert seen.console == []


def test_a_phone_offers_its_camera(browser, url):
    """Where the pointer is a finger; the buttons are then large enough for one."""
    phone = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    page.goto(url)
    expect(page.locator("#take")).to_be_visible()
    assert page.locator("#camera").get_attribute("capture") == "environment"
    assert min(page.locator("button:visible").evaluate_all("all => all.map((one) => one.offsetHeight)")) >= 44
    keep(page, "page-phone")
    phone.close()


def test_a_server_that_is_gone_is_said_in_words_and_can_be_tried_again(browser, tmp_path):
    """The picture stays; the second try succeeds."""
    tiny_bundle.write(tmp_path)
    with (
        process(tmp_path, "--http-address", ":0") as started,
        visit(browser, f"http://127.0.0.1:{port(started, 'http_port')}/") as seen,
    ):
        page = seen.page
        expect(page.locator("#about")).to_contain_text("colours")
        page.context.set_offline(True)
        page.locator("#files").set_input_files([upload("red")])
        expect(page.locator(".wrong")).to_contain_text("did not answer")
        page.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".card")).to_be_focused()  # not the top of the page
        expect(page.locator(".bars li").first).to_contain_text("red")


def test_a_server_with_tokens_asks_for_one_and_keeps_it_for_the_tab(browser, tmp_path):
    """A wrong one is told, a right one answers pictures, also after a reload; another tab knows nothing of it."""
    with asked_for_a_token(browser, tmp_path, requests_per_s=0) as (seen, token):
        page = seen.page
        keep(page, "page-token")
        page.keyboard.type("\u201ccurly\u201d")  # no header can carry it
        page.keyboard.press("Enter")
        expect(page.locator("#refused")).to_contain_text("This is no token")
        page.locator("#token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#refused")).to_have_text("The server does not know this token.")
        page.locator("#token").fill(token)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#gate")).to_be_hidden()
        page.locator("#files").set_input_files([upload("red")])
        expect(page.locator(".bars li").first).to_contain_text("red")
        page.reload()
        expect(page.locator("#about")).to_contain_text("colours")
        expect(page.locator("#gate")).to_be_hidden()
        assert [line for line in seen.console if "401" not in line] == []
        other = browser.new_page()
        other.goto(page.url)
        expect(other.locator("#gate")).to_be_visible()
        other.close()


def test_pictures_wait_as_long_as_a_rate_limit_asks(browser, tmp_path):
    """Several at once are more than the token's rate: all of them are answered in the end, without a click."""
    with asked_for_a_token(browser, tmp_path, requests_per_s=2) as (seen, token):
        page = seen.page
        page.evaluate(_PASTE_TEXT, token)
        expect(page.locator("#status")).to_have_text("")  # a token is no missing picture
        page.locator("#token").fill(token)
        page.keyboard.press("Enter")
        expect(page.locator("#choose")).to_be_focused()
        page.evaluate(_KEEP_STATUS)
        page.locator("#files").set_input_files([upload("red", name=f"{number}.png") for number in range(6)])
        expect(page.locator(".bars")).to_have_count(6)
        assert any(re.search(r"no more just now\. Asking again in \d+ s …", text) for text in page.evaluate("told"))
        expect(page.locator("#status")).to_have_text("")
        expect(page.locator(".wrong")).to_have_count(0)


def test_more_pictures_than_the_rate_has_patience_for_are_answered_while_it_gives_answers(browser, tmp_path):
    """Each answer shows that waiting is worth it: more rounds than a picture of its own would wait."""
    with asked_for_a_token(browser, tmp_path, requests_per_s=1.5) as (seen, token):
        page = seen.page
        page.locator("#token").fill(token)
        page.keyboard.press("Enter")
        page.locator("#files").set_input_files([upload("red", name=f"{number}.png") for number in range(14)])
        expect(page.locator(".bars")).to_have_count(14, timeout=60_000)
        expect(page.locator(".wrong")).to_have_count(0)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (413, "The file is too large."),
        (503, "The server is not ready."),
        (502, "The server is not ready."),
        (418, "418"),
    ],
)
def test_what_something_before_the_server_says_is_told_in_words_too(browser, url, status, words):
    """A proxy answers with a page of its own."""
    with visit(browser, url) as seen:
        page = seen.page
        page.route("**/*:classify", lambda route: route.fulfill(status=status, body="<html>no</html>"))
        page.locator("#files").set_input_files([upload("red")])
        expect(page.locator(".wrong")).to_contain_text(words)


def test_answers_and_errors_are_read_out(browser, url):
    """Each as it comes, with the name of its picture, at a place where nobody sees them twice."""
    with visit(browser, url) as seen:
        page = seen.page
        page.locator("#files").set_input_files([upload("red"), upload("red", name="bad.png", data=b"text")])
        log = page.get_by_role("log")
        expect(log).to_contain_text("red.png: red, ")
        expect(log).to_contain_text("bad.png: This is not a picture.")
        assert log.bounding_box()["width"] <= 1
        assert seen.overflow_px() <= 0


def test_a_browser_that_keeps_nothing_shows_the_page_too(browser, url):
    """With site data blocked, asking for it is an error."""
    with visit(browser, url) as seen:
        page = seen.page
        page.add_init_script("Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('no'); } })")
        page.reload()
        page.locator("#files").set_input_files([upload("red")])
        expect(page.locator(".bars li").first).to_contain_text("red")
