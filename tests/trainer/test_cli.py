"""The commands as a person meets them: what they print, and what they exit with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from .pictures import make_folder

ROOT = Path(__file__).parents[2]
TINY_FIT = ("--weights", "none", "--backbone", "mobilenet_v3_small", "--image-size", "32", "--epochs", "0")


def trainer(*words: object) -> "subprocess.CompletedProcess[str]":
    """Run a command as its own process."""
    line = [sys.executable, "-m", "trainer", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), count=10)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = trainer("fit", data, "--out", folder, *TINY_FIT)
    assert done.returncode == 0, done.stderr
    assert f"see {folder / 'report.html'}; next: trainer export {folder}" in done.stdout.splitlines()[-1]
    assert (folder / "report.html").exists()
    return folder


@pytest.mark.parametrize(
    ("flags", "files", "next_command"),
    [
        ((), {"model.onnx", "model.torchscript.pt", "model.pt2"}, "serving run"),
        (("--onnx", "--portable"), {"model.onnx", "model.portable.onnx"}, "serving run"),
        (("--torchscript",), {"model.torchscript.pt", "model.pt2"}, "trainer export"),
        (("--onnx", "--torchscript"), {"model.onnx", "model.torchscript.pt", "model.pt2"}, "serving run"),
    ],
)
def test_flags_choose_the_formats(
    run: Path, tmp_path: Path, flags: tuple[str, ...], files: set[str], next_command: str
) -> None:
    """Neither flag means both; what is not asked for is not written, and the last line says what can be done next."""
    done = trainer("export", run, "--to", tmp_path, "--name", "m", "--no-int8", *flags)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "m" / "1").iterdir()} == {
        *files,
        "bundle.json",
        "golden",
        "report.html",
        "MODEL_CARD.md",
        "sbom.json",
    }
    assert f"next: {next_command}" in done.stdout.splitlines()[-1]


def test_predict_and_evaluate_answer_from_the_bundle(run: Path, data: Path, tmp_path: Path) -> None:
    """Every picture gets all labels, scores that sum to 1; a file that is none fails alone, with exit code 1."""
    assert trainer("export", run, "--to", tmp_path, "--name", "m", "--onnx", "--no-int8").returncode == 0
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    done = trainer("predict", tmp_path / "m" / "1", data / "red", tmp_path / "broken.jpg", "--json")
    *answers, broken = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(answers)) == (1, 10)
    assert all(sum(one["score"] for one in answer["predictions"]) == pytest.approx(1) for answer in answers)
    assert "begin no picture" in broken["error"]
    evaluated = json.loads(trainer("evaluate", tmp_path / "m" / "1", data, "--json").stdout)
    assert evaluated["picture_count"] == 30
    top1 = evaluated["headlines"]["top-1"]
    assert 0 <= top1["low"] <= top1["value"] <= top1["high"] <= 1


def test_preview_is_a_picture(data: Path, tmp_path: Path) -> None:
    """Six rows of eight tiles."""
    assert trainer("data", "preview", data, "--to", tmp_path / "sheet.png", "--augment", "strong").returncode == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 132 + 4, 6 * 132 + 4)


@pytest.mark.parametrize("command", ["fit", "export", "preview"])
def test_place_that_cannot_be_written_is_one_line(run: Path, data: Path, tmp_path: Path, command: str) -> None:
    """A file where a folder should be: exit code 2, the place is named, and there is no traceback."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    words = {
        "fit": ("fit", data, "--out", place, *TINY_FIT),
        "export": ("export", run, "--to", place, "--name", "m"),
        "preview": ("data", "preview", data, "--to", place),
    }[command]
    done = trainer(*words)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert last.startswith(f"Error: {place}")
    assert "choose another place" in last
