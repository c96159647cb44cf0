"""Occlusion: where covering a picture takes the answer away. No torch is needed for it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bundle.preprocess import PreprocessSpec
from bundle.runtime import open_model
from tests.bundle.tiny_bundle import make_bundle
from trainer.cli import app
from trainer.errors import DataError
from trainer.explain import explain, occlusion

SPEC = PreprocessSpec(resize_px=32, crop_px=32)


def lamp() -> np.ndarray:
    """Return a dark picture whose upper left quarter is bright, (32, 32, 3)."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16] = 255
    return pixels


def test_heat_lies_on_what_the_answer_rests_on(tmp_path: Path) -> None:
    """A network that measures brightness sees light in the bright quarter, and dark anywhere else."""
    model = open_model(make_bundle(tmp_path, spec=SPEC))
    light, dark = (occlusion(model, lamp(), index=index) for index in (1, 0))
    assert light.shape == dark.shape == (32, 32)
    assert light.max() == dark.max() == 1
    assert light[4:12, 4:12].min() > 0.7
    assert light[20:, 20:].max() == 0
    assert dark[4:12, 4:12].max() == 0
    assert dark[20:, 20:].min() > 0.7


def test_explanation_is_the_answer_with_a_picture(tmp_path: Path) -> None:
    """The label and its calibrated score, and an overlay of the crop's size."""
    bundle = make_bundle(tmp_path / "models", spec=SPEC)
    Image.fromarray(lamp()).save(tmp_path / "lamp.png")
    found = explain(bundle.folder, tmp_path / "lamp.png")
    assert found.label == "dark"
    assert found.score == pytest.approx(1 / (1 + np.exp(16 * (0.25 - 0.5))))
    assert found.picture.size == (32, 32)


def test_command_writes_a_png(tmp_path: Path) -> None:
    """It names the answer, the file and the next command."""
    bundle = make_bundle(tmp_path / "models", spec=SPEC)
    Image.fromarray(lamp()).save(tmp_path / "lamp.png")
    target = tmp_path / "overlay"
    done = CliRunner().invoke(app, ["explain", str(bundle.folder), str(tmp_path / "lamp.png"), "--to", str(target)])
    assert done.exit_code == 0, done.output
    assert "dark 0.98" in done.stdout
    assert f"wrote {target}; next: trainer predict" in done.stdout
    with Image.open(target) as overlay:
        assert (overlay.format, overlay.size) == ("PNG", (32, 32))


def test_unreadable_picture_is_named(tmp_path: Path) -> None:
    """A file that is no picture, and one that is not there."""
    bundle = make_bundle(tmp_path / "models", spec=SPEC)
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"text\.jpg: found bytes that begin no picture"):
        explain(bundle.folder, tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg: No such file"):
        explain(bundle.folder, tmp_path / "gone.jpg")
