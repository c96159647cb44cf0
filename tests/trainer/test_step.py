"""One step of fine-tuning, its rates, and test-time augmentation: compared with what is known by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from trainer import runs
from trainer.answers import answer
from trainer.backbones import build
from trainer.config import FitConfig
from trainer.errors import ConfigError
from trainer.network import Deployed, Mirrored
from trainer.optim import make_optimizer, set_batchnorm
from trainer.session import Session
from trainer.step import parts, take_step

from .pictures import make_folder

CONFIG = FitConfig(
    backbone="resnet18", weights="none", image_size=32, optimizer="sgd", weight_decay=0.0, batchnorm="frozen"
)


def stepped(session: Session, config: FitConfig) -> torch.Tensor:
    """Return how far one step moves all weights, from the same start."""
    session.run = replace(session.run, config=config)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    session.model.eval()
    images = torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    optimizer = make_optimizer(session.model.classifier, config)
    targets = torch.tensor([0, 1, 2, 0, 1])
    take_step(session, optimizer, images=images, targets=targets, class_weights=None, factor=1.0)
    moved = torch.cat([(value - before[name]).flatten() for name, value in session.model.named_parameters()])
    session.model.load_state_dict(before)
    return moved.detach()


def test_parts_of_a_step_add_up_and_clipping_bounds_it(tmp_path: Path) -> None:
    """Two parts of a batch move the weights as the whole does; a clipped step has the norm that was asked for."""
    config = replace(CONFIG, augment="none", lr=0.1, body_lr_factor=1.0)
    session = runs.begin(make_folder(tmp_path / "data"), tmp_path / "run", config)
    with torch.no_grad():
        torch.nn.init.normal_(session.model.classifier.head.weight)
    whole = stepped(session, config)
    torch.testing.assert_close(stepped(session, replace(config, accumulate=2)), whole, rtol=1e-3, atol=1e-6)
    assert whole.norm() > 1e-2
    clipped = stepped(session, replace(config, clip_norm=0.01))
    assert float(clipped.norm()) == pytest.approx(0.1 * 1.9 * 0.01, rel=0.02)  # Nesterov's first step: 1 + momentum


@pytest.mark.parametrize(("batchnorm", "weights", "frozen"), [
    ("auto", "default", True), ("auto", "here.pth", True), ("auto", "none", False),
    ("train", "default", False), ("frozen", "none", True),
])  # fmt: skip
def test_pretrained_batchnorm_statistics_are_kept_unless_told_otherwise(
    batchnorm: Literal["auto", "train", "frozen"], weights: str, frozen: bool
) -> None:
    """What the probe's head was fitted to stays; random weights, whose statistics mean nothing, follow the pictures."""
    config = FitConfig(batchnorm=batchnorm, weights=weights)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    set_batchnorm(model, frozen=config.has_frozen_batchnorm)
    model(torch.rand(4, 3, 5, 5) + 3)
    assert (model[1].running_var.tolist() == [1, 1]) is frozen
    assert model[1].weight.requires_grad


def test_no_part_has_a_single_picture() -> None:
    """Five pictures in at most four parts are two and three."""
    sizes = [len(rows) for _, rows in parts(torch.zeros(5, 1), torch.zeros(5, 2), count=4)]
    assert sizes == [3, 2]


def test_layers_learn_slower_away_from_the_head() -> None:
    """Head at the peak rate; the last block at body_lr_factor, each one before at half of the next."""
    model = build("resnet18", class_count=3, weights="none", image_size=32).model
    config = FitConfig(lr=1.0, body_lr_factor=0.5, layer_decay=0.5)
    rates = {
        id(parameter): group["lr"]
        for group in make_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    named = {name.removeprefix("network."): rates[id(value)] for name, value in model.named_parameters()}
    assert named["fc.weight"] == 1.0
    assert named["layer4.1.conv1.weight"] == 0.5
    assert named["layer4.0.downsample.0.weight"] == 0.25
    assert named["conv1.weight"] < named["layer1.0.conv1.weight"] < named["layer2.0.conv1.weight"]


def test_mirrored_answers_do_not_change_when_pictures_are_mirrored() -> None:
    """The mean over both sides is the same from either side; the plain network's answer is not."""
    torch.manual_seed(0)
    backbone = build("resnet18", class_count=3, weights="none", image_size=32)
    torch.nn.init.normal_(backbone.model.head.weight)
    plain = Deployed(backbone.model, backbone.mean, backbone.std).eval()
    images = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    mirrored = Mirrored(plain)
    torch.testing.assert_close(mirrored(images), mirrored(images.flip(2)))
    assert not torch.allclose(plain(images), plain(images.flip(2)), atol=1e-3)


def test_run_is_evaluated_with_mirror_images(hostile_run: Path) -> None:
    """Other logits than without, for the same pictures."""
    plain, mirrored = answer(hostile_run, None), answer(hostile_run, None, tta=True)
    assert plain.pictures == mirrored.pictures
    assert not np.array_equal(plain.logits, mirrored.logits)


def test_bundle_is_not(tmp_path: Path) -> None:
    """A bundle answers as it does in production."""
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ConfigError, match="without --tta"):
        answer(tmp_path, tmp_path, tta=True)
