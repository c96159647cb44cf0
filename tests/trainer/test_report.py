"""The report holds what was measured, keeps strangers' words apart from its own, and costs no run its life."""

import base64
import hashlib
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from tests.bundle.tiny_bundle import make_contract, make_manifest
from trainer import backbones, checkpoint
from trainer.classifier import Classifier
from trainer.cli import app
from trainer.errors import CheckpointError
from trainer.network import Deployed
from trainer.proof import Parity
from trainer.report import render
from trainer.report.collect import SHOWN, BundleFacts, Report, collect
from trainer.report.gradcam import grad_cam
from trainer.report.papers import model_card
from trainer.report.pictures import overlay

from .conftest import HOSTILE


@pytest.fixture(scope="module")
def report(hostile_run: Path) -> Report:
    return collect(hostile_run)


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_is_self_contained(report: Report) -> None:
    """No script, no inline style, no address outside the page; the policy names the hash of the one style sheet."""
    page = render.render(report)
    tags = Tags(page).found
    assert {tag for tag, _ in tags}.isdisjoint({"script", "iframe", "object", "base", "form"})
    assert not any("style" in attributes or any(name.startswith("on") for name in attributes) for _, attributes in tags)
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(attributes["content"] for _, attributes in tags if attributes.get("http-equiv"))
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}';")


def test_hostile_labels_and_names_are_text(report: Report) -> None:
    """Labels and file names appear letter for letter, and never as markup or as a template."""
    page = render.render(report)
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "&lt;i&gt;broken.png" in page


def test_figures_are_those_of_the_run(hostile_run: Path, report: Report) -> None:
    """The best checkpoint's own logits give its own score; every held-out picture stands in the matrix once."""
    state, tensors = checkpoint.load(hostile_run, "best")
    targets = torch.tensor([report.run.labels.index(item.label) for item in checkpoint.read_split(hostile_run)["val"]])
    logits = tensors["validation/logits"]
    assert state.best is not None
    assert float((logits.argmax(1) == targets).double().mean()) == state.best.accuracy
    assert sum(map(sum, report.calibrated.confusion)) == report.counts["test"] == len(report.hits)
    assert [row.counts["train"] for row in report.classes] == [
        sum(item.label == label for item in checkpoint.read_split(hostile_run)["train"]) for label in report.run.labels
    ]
    assert len(report.history) == 1
    assert report.state.probe_seconds > 0
    assert report.fine_tune_seconds > 0


def test_errors_are_sure_first_and_hits_unsure_first(report: Report) -> None:
    """What an error shows differs from the truth, what a hit shows does not."""
    assert all(example.answer != example.truth for example in report.errors)
    assert all(example.answer == example.truth for example in report.weak_hits)
    sure = [example.score for example in report.errors]
    unsure = [example.score for example in report.weak_hits]
    assert sure == sorted(sure, reverse=True)
    assert unsure == sorted(unsure)
    assert len(sure) == min(SHOWN, int((~report.hits).sum()))
    assert unsure[0] == report.confidences[report.hits].min()


def test_data_check_counts_what_is_wrong(report: Report) -> None:
    """One unreadable file with its reason; one file that is there twice, kept on one side by the split."""
    (bad,) = report.data.unreadable
    assert bad.path.name == "<i>broken.png"
    assert bad.reason
    assert (report.data.repeated, report.data.across_sides, report.data.two_labels) == (1, (), ())


@pytest.mark.parametrize("chose", [False, True])
def test_page_says_what_validation_chose(report: Report, chose: bool) -> None:
    """Where the figures are those of validation, whatever was chosen there flatters them."""
    shown = replace(report, held_out="val", state=replace(report.state, chose_crop=chose))
    page = render.render(shown)
    assert "Validation also chose" in page
    assert ("how closely to look" in page) is chose
    assert f"the central {100 * report.run.spec.crop_px / report.run.spec.resize_px:.0f} %" in page


def test_equal_runs_give_equal_bytes(hostile_run: Path, report: Report) -> None:
    """Measured twice, written twice: the same page."""
    assert render.render(collect(hostile_run)) == render.render(report)


def test_report_is_written_without_the_pictures(hostile_run: Path, tmp_path: Path) -> None:
    """Where the pictures have been moved away, the figures are still those of the stored validation logits."""
    moved = tmp_path / "moved"
    shutil.copytree(hostile_run, moved)
    (moved / "split.csv").write_text(
        "\n".join(
            line.replace(str(hostile_run.parent), str(tmp_path))
            for line in (hostile_run / "split.csv").read_text().splitlines()
            if line.split(",")[-4] != "test"
        )
    )
    page = render.render(collect(moved))
    assert "no longer where they were" in page
    assert "Class by class" in page


def test_bundle_adds_proof_and_files(report: Report) -> None:
    """Parity, variants with size and latency, and the twin."""
    manifest = make_manifest(make_contract())
    variant = replace(manifest.variants[0], latency_ms=3.25)
    half = replace(variant, precision="fp16", file="model.fp16.onnx", latency_ms=None)
    parity = (Parity(runtime="onnxruntime fp32", picture_count=153, equal_top1=152, max_difference=2.5e-6),)
    sizes = {"model.onnx": 13_700_000, "model.fp16.onnx": 6_900_000, "model.pt": 1_000}
    facts = BundleFacts(manifest=replace(manifest, variants=(variant, half)), parity=parity, sizes=sizes)
    page = render.render(report, facts)
    for text in (
        "tiny 1",
        "onnxruntime fp32",
        ">153<",
        ">152<",
        "2.5e-06",
        "13.7\N{NO-BREAK SPACE}MB",
        "3.2 ms",
        "6.9\N{NO-BREAK SPACE}MB",
        "for GPUs",
        "model.pt",
    ):
        assert text in page
    assert "3.2 ms" not in render.render(report)


def test_candidates_are_listed_with_their_verdicts(report: Report) -> None:
    """What the search for INT8 tried: figures and why it was kept or not."""
    manifest = make_manifest(make_contract())
    candidate = SimpleNamespace(
        name="per-channel minmax",
        accuracy=manifest.variants[0].accuracy,
        agreement=0.993,
        latency_ms=4.04,
        latency_batch8_ms=31.2,
        size_bytes=5_100_000,
        verdict="kept",
    )
    searched = SimpleNamespace(**vars(manifest) | {"candidates": (candidate,)})
    page = render.render(report, BundleFacts(manifest=searched, parity=(), sizes={"model.onnx": 1, "model.pt": 1}))
    for text in (
        "per-channel minmax",
        "99.3\N{NO-BREAK SPACE}%",
        "4.0 ms",
        "31.2 ms",
        "5.1\N{NO-BREAK SPACE}MB",
        "kept",
    ):
        assert text in page


def test_failed_report_costs_one_line(
    hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever happens inside, the caller goes on, no half page is left, and a person is told how to try again."""

    def fail(_: Path) -> Report:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(render, "collect", fail)
    assert not render.try_write_report(hostile_run, tmp_path / "report.html")
    assert "".join(capsys.readouterr().err.splitlines()).startswith("no report (RuntimeError: no luck)")
    assert not list(tmp_path.iterdir())


def test_command_writes_the_report(hostile_run: Path, tmp_path: Path) -> None:
    """Where it is told to, with the next command in the last line; a folder that is no run is named."""
    target = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(hostile_run), "--to", str(target)])
    assert done.stdout.splitlines()[-1].startswith(f"wrote {target}; next: trainer export {hostile_run}")
    assert target.read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(done.exception, CheckpointError)
    assert str(tmp_path / "run.json") in str(done.exception)


class RedDetector(nn.Module):
    """A map of redness, two classes: red speaks for the first and against the second."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.look.weight.copy_(torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
            self.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.look(images)).mean((2, 3)))


def test_heat_lies_where_the_evidence_is() -> None:
    """A red corner is hot for the class that it speaks for, and nothing is for the class that it speaks against."""
    model = Deployed(Classifier(RedDetector(), "head"), (0.0,) * 3, (1.0,) * 3)
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[:, 4:12, 20:28, 0] = 255
    heat = grad_cam(model, images, torch.tensor([0, 1]))
    assert heat.shape == (2, 32, 32)
    assert heat[0, 5:11, 21:27].min() > 0.5
    assert heat[0].max() == 1
    assert heat[0, 16:, :16].max() == 0
    assert heat[1].max() == 0


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenet_v3_small", "squeezenet1_1", "timm:resnet10t"])
def test_grad_cam_finds_the_map_of_every_kind(name: str) -> None:
    """In-place activations, gates and concatenations: heat in 0..1 that is not flat, and no trace left."""
    torch.manual_seed(0)
    backbone = backbones.build(name, class_count=3, weights="none", image_size=64)
    nn.init.normal_(backbone.model.head.weight)
    model = Deployed(backbone.model, backbone.mean, backbone.std).eval()
    images = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    before = model(images)
    heat = torch.cat([grad_cam(model, images, torch.full((2,), index)) for index in range(3)])
    assert heat.shape == (6, 64, 64)
    assert heat.min() >= 0
    assert heat.max() == 1
    assert heat.std() > 0.01
    assert torch.equal(before, model(images))


def test_overlay_keeps_cold_places_and_lights_hot_ones() -> None:
    """Black under full heat becomes bright, black without heat stays nearly black."""
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    pixels = np.asarray(overlay(np.zeros((4, 4, 3), np.uint8), heat))
    assert pixels[0, 0].max() > 140
    assert pixels[3, 3].max() < 10


def test_model_card_escapes_labels_and_carries_front_matter() -> None:
    """A label cannot make a link, markup or another table cell; the licence is that of the weights."""
    manifest = make_manifest(make_contract(labels=("<script>", "[a](http://b) | `c`\n# d")))
    card = model_card(manifest)
    _, front, body = card.split("---\n", 2)
    assert "license: cc0-1.0" in front
    assert "pipeline_tag: image-classification" in front
    assert "&lt;script\\>" in body
    assert "\\[a\\]\\(http://b\\) \\| \\`c\\` \\# d" in body
    assert manifest.variants[0].sha256 in body
    assert card == model_card(manifest)


def test_contact_sheet_begins_with_the_picture_itself(report: Report) -> None:
    """The first column is not augmented: uniform noise around one colour, without the black of a rotation."""
    assert report.augmented is not None
    first = np.asarray(report.augmented.crop((4, 4, 132, 132)))
    assert first.min(axis=2).max() < 255
    assert isinstance(report.augmented, Image.Image)
