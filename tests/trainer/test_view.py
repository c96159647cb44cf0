"""How closely to look: the closer crop is taken where validation is clearly better with it, and only there."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from bundle.preprocess import PreprocessSpec
from trainer import checkpoint, runs, train
from trainer.config import FitConfig
from trainer.data import Side
from trainer.decoded import decoded_folder
from trainer.probe import Probe
from trainer.session import Session
from trainer.view import View, choose_view

CONFIG = FitConfig(image_size=64, epochs=0, threads=1, val_share=0.4, test_share=0)
OWN_PX, CLOSER_PX = 73, 91  # 64 of 224 · 256, and that / 0.8
SIDE = 100  # of the pictures: the closer crop sees what is 15 px from the edge, the backbone's own what is 6


def write_shapes(root: Path, *, radius: int) -> Path:
    """Write dark pictures with bright shapes: the label's in the middle, any near the edge; 0: the label's there."""
    generator = np.random.default_rng(1)
    for label in ("circle", "square"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            picture = Image.new("RGB", (SIDE, SIDE), tuple(map(int, generator.integers(0, 100, 3))))
            brush = ImageDraw.Draw(picture)

            def draw(shape: str, x: int, y: int, radius: int, brush: ImageDraw.ImageDraw = brush) -> None:
                colour = tuple(map(int, generator.integers(150, 256, 3)))
                stroke = brush.ellipse if shape == "circle" else brush.rectangle
                stroke((x - radius, y - radius, x + radius, y + radius), fill=colour)

            if radius:
                draw(label, SIDE // 2, SIDE // 2, radius)
            for x in (20, 40, 60, 80):
                shape = str(generator.choice(["circle", "square"])) if radius else label
                draw(shape, x, 11, 4)
                draw(shape, x, SIDE - 11, 4)
            picture.save(root / label / f"{number}.png")
    return root


def begin(data: Path, folder: Path, **changes: object) -> Session:
    return runs.begin(data, folder, replace(CONFIG, **changes))


def view(losses: list[float]) -> View:
    nothing = torch.empty(0)
    return View(
        spec=PreprocessSpec(),
        probe=Probe(weight=nothing, bias=nothing, l2=1.0, accuracy=0.0, log_loss=0.0),
        logits=nothing,
        losses=torch.tensor(losses),
        val_seconds=0.0,
    )


@pytest.mark.parametrize(
    ("losses", "is_better"),
    [
        pytest.param([0.4] * 8, True, id="all less"),
        pytest.param([0.3, 0.5] * 4, True, id="half of them less"),
        pytest.param([0.498] * 8, False, id="all hardly less"),
        pytest.param([0.0, *[0.55] * 7], False, id="one picture alone"),
        pytest.param([0.6] * 8, False, id="all more"),
    ],
)
def test_better_is_more_than_one_standard_error(losses: list[float], is_better: bool) -> None:
    """One picture that is right by luck is no reason."""
    assert view(losses).beats(view([0.5] * 8)) is is_better


def test_a_small_thing_in_the_middle_is_looked_at_closely(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run says so, and every evaluation after it looks as closely."""
    data = write_shapes(tmp_path / "data", radius=4)
    outcome = train.fit(begin(data, tmp_path / "run"))
    assert "central 70% of the shorter side instead of 88%" in capsys.readouterr().err
    assert checkpoint.read_run(tmp_path / "run").spec.resize_px == CLOSER_PX
    again = runs.evaluate_target(tmp_path / "run", tmp_path / "data")
    assert again.picture_count == 24
    assert again.headlines["top-1"].value == pytest.approx(outcome.probe.accuracy)


def test_what_lies_near_the_edge_is_not_cut_off(tmp_path: Path) -> None:
    """Where the closer crop does not reach, and the backbone's own does."""
    session = begin(write_shapes(tmp_path / "data", radius=0), tmp_path / "run")
    assert choose_view(session).spec.resize_px == session.run.spec.resize_px == OWN_PX


def test_of_two_looks_only_what_is_used_stays_decoded(tmp_path: Path) -> None:
    """The other crop's pictures would take their room until the fit ends."""
    session = begin(write_shapes(tmp_path / "data", radius=4), tmp_path / "run")
    with decoded_folder(session.folder) as session.decoded:
        choose_view(session)
        kept = {path.name.rpartition("-")[2] for path in session.decoded.iterdir()}
    assert kept == {f"{CLOSER_PX}.npy"}


@pytest.mark.parametrize(("budget_s", "is_choice"), [(109.0, False), (111.0, True)])
def test_a_second_look_takes_at_most_a_tenth_of_what_is_left(tmp_path: Path, budget_s: float, is_choice: bool) -> None:
    """By a clock of our own, by which a look takes 10 s."""
    session = begin(write_shapes(tmp_path / "data", radius=4), tmp_path / "run", time_budget=budget_s)
    now = [0.0]
    features = session.features

    def five_seconds(side: Side) -> tuple[torch.Tensor, torch.Tensor]:
        now[0] += 5.0
        return features(side)

    session.clock, session.started, session.used_before = lambda: now[0], 0.0, 0.0
    session.features = five_seconds  # type: ignore[method-assign]
    assert choose_view(session).is_choice is is_choice


def test_two_processes_choose_as_one_does(tmp_path: Path) -> None:
    """Each sees half of the pictures, twice; both go on with the same crop, and one writes it down."""
    data = write_shapes(tmp_path / "data", radius=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--image-size", "64", "--epochs", "1", "--threads", "1", "--val-share", "0.4", "--test-share", "0"]
    command = [*torchrun, "-m", "trainer", "fit", str(data), "--out", str(tmp_path / "run"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a closer look") == 1
    assert checkpoint.read_run(tmp_path / "run").spec.resize_px == CLOSER_PX
    assert checkpoint.read_state(tmp_path / "run", "best").chose_crop


def test_the_closest_look_at_the_largest_pictures_makes_a_bundle(tmp_path: Path) -> None:
    """What a fit accepts an export must: a manifest takes a shorter side of up to 4,096 px."""
    knobs = {part.name: get_type_hints(FitConfig, include_extras=True)[part.name] for part in fields(FitConfig)}
    largest, closest = knobs["image_size"].__metadata__[0].max, knobs["crop_pct"].__metadata__[0].min
    session = begin(
        write_shapes(tmp_path / "data", radius=4), tmp_path / "run", image_size=int(largest), crop_pct=closest
    )
    assert session.run.spec.resize_px <= 4096


@pytest.mark.parametrize(
    ("changes", "resize_px"),
    [({"crop_pct": 0.5}, 128), ({"crop_pct": 1.0}, 64), ({"weights": "none"}, OWN_PX)],
    ids=["half", "all", "nothing pretrained"],
)
def test_there_is_no_second_look_where_nothing_is_to_be_decided(
    tmp_path: Path, changes: dict[str, object], resize_px: int
) -> None:
    """--crop-pct decides; random weights see no size better than another."""
    session = begin(write_shapes(tmp_path / "data", radius=4), tmp_path / "run", **changes)
    looks: list[int] = []
    features = session.features
    session.features = lambda side: (looks.append(session.run.spec.resize_px), features(side))[1]  # type: ignore[method-assign]
    assert choose_view(session).spec.resize_px == resize_px
    assert looks == [resize_px] * 2  # train and validation, once
