"""Sign, verify, benchmark and diff as a person meets them. The bundles are made by hand: nothing is trained."""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from bundle.contract import CONTRACT_KEY, contract_to_json
from bundle.manifest import Twin
from bundle.repository import Bundle, file_sha256, load_bundle, write_manifest
from tests.bundle.tiny_bundle import STEEPNESS, make_bundle
from trainer.benchmark import measure
from trainer.bundle_cli import _MAX_ROWS
from trainer.cli import main
from trainer.compare import mcnemar
from trainer.diff import Difference, compare
from trainer.report.diff_page import MAX_SHOWN, render

LABELS = ("dark", "grey", "light")


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Trainer = Callable[..., Done]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trainer:
    """Run a command in this process, through the same `main`: starting a process costs seconds of importing torch."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


class Brightness(torch.nn.Module):
    """What the tiny graph computes, for two labels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        centred = images.float().mean((1, 2, 3)) / 255 - 0.5
        return torch.stack([-STEEPNESS * centred, STEEPNESS * centred], 1)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """ONNX and its TorchScript twin, both whole."""
    made = make_bundle(tmp_path / "models", twins=())
    path = made.folder / "model.torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Brightness(), torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
        torch.jit.save(traced, str(path), _extra_files={CONTRACT_KEY: contract_to_json(made.manifest.contract)})
    twin = Twin(runtime="torchscript", file=path.name, sha256=file_sha256(path))
    write_manifest(made.folder, replace(made.manifest, twins=(twin,)))
    return load_bundle(made.folder)


def test_what_was_signed_verifies(trainer: Trainer, bundle: Bundle, tmp_path: Path) -> None:
    """Every command names the next one, files that no hash covers are named, and the key is not replaced."""
    key = tmp_path / "key.pem"
    assert trainer("keygen", key).out.endswith(f"next: trainer sign models/NAME/VERSION --key {key}\n")
    again = trainer("keygen", key)
    assert (again.code, again.out, again.err.count("\n")) == (2, "", 1)
    signed = trainer("sign", bundle.folder, "--key", key)
    assert signed.out == (
        f"wrote {bundle.folder / 'bundle.sig'}; "
        f"next: serving run {tmp_path / 'models'} --require-signature {tmp_path / 'key.pub'}\n"
    )
    (bundle.folder / "report.html").touch()
    verified = trainer("verify", bundle.folder, "--key", tmp_path / "key.pub")
    assert verified.code == 0
    assert verified.out.startswith("outside the signature: report.html\n")
    assert "whole and signed" in verified.out


@pytest.mark.parametrize("file", ["bundle.json", "model.torchscript.pt", "golden/white.png", "bundle.sig"])
def test_one_changed_byte_does_not_verify(trainer: Trainer, bundle: Bundle, tmp_path: Path, file: str) -> None:
    """In the manifest, in a twin that no server opens, in a golden picture, in the signature: one line, exit code 2."""
    trainer("keygen", tmp_path / "key.pem")
    trainer("sign", bundle.folder, "--key", tmp_path / "key.pem")
    data = bytearray((bundle.folder / file).read_bytes())
    data[-2] ^= 1
    (bundle.folder / file).write_bytes(data)
    done = trainer("verify", bundle.folder, "--key", tmp_path / "key.pub")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"Error: {bundle.folder}")


def test_benchmark_measures_every_model_file(bundle: Bundle) -> None:
    """Each runtime at each batch size on each number of threads, TorchScript beside ONNX; torch's threads stay."""
    before = torch.get_num_threads()
    measured = measure(bundle.folder, batches=(1, 5), threads=(1, 2), seconds=0.005)
    rows = [(timing.threads, timing.batch, timing.runtime) for timing in measured.timings]
    runtimes = ("onnxruntime fp32", "torchscript")
    assert rows == [(threads, batch, runtime) for threads in (1, 2) for batch in (1, 5) for runtime in runtimes]
    assert torch.get_num_threads() == before
    for timing in measured.timings:
        assert timing.calls >= 5  # one a round at least
        assert 0 < timing.median_ms <= timing.p90_ms
        assert timing.pictures_per_s == pytest.approx(timing.batch / timing.median_ms * 1000)


def test_benchmark_prints_a_table_or_json_and_plots(trainer: Trainer, bundle: Bundle, tmp_path: Path) -> None:
    """The plot is SVG with a line each; JSON is stdout's only content, although something is said on stderr."""
    plot = tmp_path / "speed.svg"
    words = ("benchmark", bundle.folder, "--batch", "1,2", "--threads", "1", "--seconds", "0.005")
    table = trainer(*words, "--plot", plot)
    assert (table.code, table.out.count("torchscript"), table.out.count("onnxruntime fp32")) == (0, 2, 2)
    assert table.out.splitlines()[-1] == f"wrote {plot}; next: serving run {tmp_path / 'models'}"
    svg = ElementTree.parse(plot).getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg.findall(".//*[@id='legend_1']/*[@id]")) >= 2
    record = json.loads(trainer(*words, "--json").out)
    assert (record["bundle"], len(record["timings"])) == ("tiny/1", 4)


@pytest.mark.parametrize(
    "words", [("--batch", "0"), ("--batch", "1,1"), ("--batch", "2000"), ("--threads", "x"), ("--threads", "")]
)
def test_sizes_that_make_no_sense_are_refused(trainer: Trainer, bundle: Bundle, words: tuple[str, str]) -> None:
    """Before a model is opened, and with the option's name."""
    done = trainer("benchmark", bundle.folder, *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith(f"Error: {words[0]}: found")


def test_benchmark_refuses_a_changed_twin(trainer: Trainer, bundle: Bundle) -> None:
    """Figures of a file that is not the bundle's would be a lie."""
    (bundle.folder / "model.torchscript.pt").write_bytes(b"other")
    done = trainer("benchmark", bundle.folder, "--seconds", "0.005")
    assert (done.code, "sha256 is" in done.err) == (2, True)


def picture(folder: Path, name: str, grey: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    (folder / name).write_bytes(buffer.getvalue())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle that calls black pictures dark, and one that lists the labels backwards and calls them light."""
    right = make_bundle(tmp_path / "models", "right", LABELS)
    wrong = make_bundle(tmp_path / "models", "wrong", LABELS[::-1])  # as many labels, so as many logits
    return right.folder, wrong.folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two black pictures that are dark, a white one that is said to be dark, a black one that is said to be grey."""
    for label, name, grey in (("dark", "a.png", 0), ("dark", "b.png", 9), ("dark", "c.png", 255), ("grey", "d.png", 0)):
        picture(tmp_path / "data" / label, name, grey)
    return tmp_path / "data"


def test_diff_tells_broken_fixed_and_changed(pair: tuple[Path, Path], data: Path) -> None:
    """Broken first, within a kind the surest new answer first; labels are compared by name, whatever their place."""
    difference = compare(*pair, data)
    found = [(change.kind, change.path.name, change.before.label, change.after.label) for change in difference.changes]
    assert found == [
        ("broken", "a.png", "dark", "light"),
        ("broken", "b.png", "dark", "light"),
        ("fixed", "c.png", "light", "dark"),
        ("changed", "d.png", "dark", "light"),
    ]
    assert (difference.accuracy_before.value, difference.accuracy_after.value) == (0.5, 0.25)
    assert difference.p_value == mcnemar(2, 1)


def test_diff_of_a_bundle_with_itself_is_empty(trainer: Trainer, pair: tuple[Path, Path], data: Path) -> None:
    """And says so; the page is written all the same."""
    target = data.parent / "diff.html"
    done = trainer("diff", pair[0], pair[0], data, "--to", target)
    assert done.code == 0
    assert "0 of 4 pictures get another answer: 0 broken, 0 fixed, 0 changed" in done.out
    assert done.out.splitlines()[-1].startswith(f"wrote {target}")
    assert target.read_text().count("None.") == 3


@pytest.mark.parametrize(
    ("broken", "fixed", "p_value"), [(0, 0, 1.0), (0, 1, 1.0), (1, 5, 0.21875), (0, 6, 0.03125), (3000, 3000, 1.0)]
)
def test_mcnemar_by_hand(broken: int, fixed: int, p_value: float) -> None:
    """2 * (C(6, 0) + C(6, 1)) / 2^6 = 0.21875; counts that no float holds do no harm; both directions alike."""
    assert mcnemar(broken, fixed) == mcnemar(fixed, broken) == pytest.approx(p_value)


def test_other_labels_are_one_line(trainer: Trainer, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    """The labels that only one knows are named, and no page is written."""
    other = make_bundle(tmp_path / "models", "other", ("dark", "grey", "pale"))
    done = trainer("diff", pair[0], other.folder, data, "--to", tmp_path / "diff.html")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "light, pale in one alone" in done.err
    assert not (tmp_path / "diff.html").exists()


class Page(HTMLParser):
    """What a page holds: tags, what they point to, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_gallery_shows_every_change_and_asks_for_nothing(pair: tuple[Path, Path], data: Path) -> None:
    """A thumbnail each as a data URI, links only inside the page, no script; a file that has gone meanwhile is said."""
    difference = compare(*pair, data)
    difference.changes[0].path.unlink()
    page = Page(render(difference))
    assert (page.tags.count("img"), page.tags.count("figure"), page.tags.count("script")) == (3, 4, 0)
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in page.sources)
    assert "can no longer be read" in page.text
    for text in ("dark/b.png", "Broken: right before, wrong now (2)", "p = 1"):
        assert text in page.text
    assert "left out" not in page.text


def test_names_from_the_data_stay_text(pair: tuple[Path, Path], data: Path, trainer: Trainer) -> None:
    """A file name that is markup, for a browser or for the table, is shown as it is."""
    name = "<img src=x onerror=alert(1)>[red].png"
    (data / "dark" / "a.png").rename(data / "dark" / name)
    target = data.parent / "diff.html"
    done = trainer("diff", *pair, data, "--to", target)
    assert (done.code, name in done.out) == (0, True)
    page = Page(target.read_text())
    assert name in page.text
    assert "x" not in page.sources


def test_many_changes_are_cut_short(pair: tuple[Path, Path], data: Path, trainer: Trainer) -> None:
    """The table and the gallery say how many they leave out."""
    whole = compare(*pair, data)
    many: Difference = replace(whole, changes=(whole.changes[0],) * (MAX_SHOWN + 7))
    page = Page(render(many))
    assert page.tags.count("figure") == MAX_SHOWN
    assert f"{MAX_SHOWN} shown" in page.text
    assert "7 more are left out" in page.text
    for number in range(_MAX_ROWS):
        picture(data / "dark", f"more-{number}.png", 0)
    done = trainer("diff", *pair, data, "--to", data.parent / "diff.html")
    assert "… and 4 more" in done.out
