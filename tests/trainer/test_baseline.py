"""What backbones are worth before training: cached features, cross-validation by hand, and the command's answer."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

from trainer import features as features_module
from trainer.backbones import build
from trainer.baseline import Baseline, best_within
from trainer.cli import app
from trainer.cross_validation import CrossValidated, Estimate, cross_validate, estimate, thinned
from trainer.data import load_dataset
from trainer.features import cache_folder, cached_features
from trainer.network import Deployed, Device

from .pictures import make_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_features_are_computed_once_for_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files in another order come from the cache; a damaged cache or other weights are computed anew."""
    dataset = load_dataset(make_folder(tmp_path / "data"), seed=0, val_share=0.2, test_share=0, max_bad=0)
    pictures = dataset.sides["train"]
    computed: list[int] = []
    real = features_module.all_features

    def count(*arguments: object) -> object:
        computed.append(1)
        return real(*arguments)

    monkeypatch.setattr(features_module, "all_features", count)

    def ask(seed: int, asked: tuple[object, ...]) -> np.ndarray:
        torch.manual_seed(seed)
        backbone = build("mobilenet_v3_small", class_count=3, weights="none", image_size=32)
        model = Deployed(backbone.model, backbone.mean, backbone.std)
        return cached_features(model, backbone, Device(name="cpu"), pictures=asked)

    first = ask(0, pictures)
    assert np.array_equal(ask(0, pictures[::-1]), first[::-1])
    assert len(computed) == 1
    ask(1, pictures)
    assert len(computed) == 2
    for path in cache_folder().iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert np.array_equal(ask(0, pictures), first)
    assert len(computed) == 3


def test_margin_is_the_corrected_one() -> None:
    """Four folds: variance times 1/4 + 1/3, Student's t with three degrees of freedom."""
    found = estimate([0.8, 0.9, 0.9, 1.0], folds=4)
    assert found.accuracy == pytest.approx(0.9)
    assert found.margin == pytest.approx(stats.t.ppf(0.975, 3) * math.sqrt(0.02 / 3 * (1 / 4 + 1 / 3)))
    assert str(Estimate(accuracy=0.91, margin=0.02)) == "91.0 ± 2.0 %"


def test_half_of_the_rows_is_half_of_each_class() -> None:
    """Seeded, and never none of a class."""
    targets = np.array([0] * 8 + [1] * 4 + [2])
    rows = thinned(np.arange(13), targets, share=0.5, seed=0)
    assert np.bincount(targets[rows]).tolist() == [4, 2, 1]
    assert np.array_equal(rows, thinned(np.arange(13), targets, share=0.5, seed=0))


def test_separable_features_are_learned_and_noise_is_not() -> None:
    """Two clouds far apart give every answer right; labels at random give chance within the interval."""
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1], 30)
    noise = generator.normal(size=(60, 4)).astype(np.float32)
    clouds = noise + 20 * targets[:, None].astype(np.float32) * np.array([1, -1, 0, 0], np.float32)
    clusters = [str(number) for number in range(60)]
    good = cross_validate(clouds, targets, clusters)
    assert (good.probe.accuracy, good.curve[0.5].accuracy) == (1, 1)
    assert good.neighbours.accuracy > 0.9
    chance = cross_validate(noise, targets, clusters)
    assert abs(chance.probe.accuracy - 0.5) < chance.probe.margin + 0.1


def test_duplicates_do_not_vouch_for_each_other() -> None:
    """Noise with random labels, every picture there four times: clusters keep that from looking learned."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(20, 64)).astype(np.float32).repeat(4, axis=0)
    targets = np.tile([0, 1], 10).repeat(4)
    clusters = [str(number // 4) for number in range(80)]
    assert cross_validate(noise, targets, clusters).probe.accuracy < 0.8
    assert cross_validate(noise, targets, [str(n) for n in range(80)]).probe.accuracy > 0.9


def test_best_within_is_the_most_accurate_that_is_fast_enough() -> None:
    """None where none is."""
    none = Estimate(accuracy=0.0, margin=0.0)
    measured = CrossValidated(probe=none, neighbours=none, curve={})
    slow, fast = (
        Baseline(backbone=name, input_px=224, measured=measured, latency_ms=latency_ms)
        for name, latency_ms in (("slow", 9.0), ("fast", 4.0))
    )
    assert best_within((slow, fast), max_latency_ms=5) is fast
    assert best_within((slow, fast), max_latency_ms=10) is slow
    assert best_within((slow, fast), max_latency_ms=1) is None


def test_command_compares_backbones_and_sides(tmp_path: Path) -> None:
    """With pretrained weights from a package: figures for each, and the best in time with its side."""
    data = make_folder(tmp_path / "data")
    words = [
        "baseline",
        str(data),
        "--backbones",
        "efficientnet_lite0",
        "--image-size",
        "32, 64",
        "--max-latency-ms",
        "1e6",
    ]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    rows = {row["input_px"]: row for row in answer["backbones"]}
    assert answer["best"] == "efficientnet_lite0"
    assert rows[64]["measured"]["probe"]["accuracy"] > 0.8
    assert set(rows[64]["measured"]["curve"]) == {"0.25", "0.5"}
    assert rows[64]["latency_ms"] > rows[32]["latency_ms"] > 0
    best_px = answer["backbones"][0]["input_px"]
    done = CliRunner().invoke(app, words)
    fit = f"trainer fit {data} --out runs/NAME --backbone efficientnet_lite0 --image-size {best_px}"
    assert done.stdout.splitlines()[-1] == f"next: {fit}"


@pytest.mark.parametrize("sides", ["8", "224,x", "2048", "-32"])
def test_sides_that_are_none_are_refused(tmp_path: Path, sides: str) -> None:
    """Before any picture is read."""
    done = CliRunner().invoke(app, ["baseline", str(tmp_path), "--image-size", sides])
    assert done.exit_code == 2
    assert "wanted pixels from 16 to 1024, such as 224,288" in " ".join(done.output.replace("│", " ").split())
