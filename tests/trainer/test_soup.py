"""The greedy soup: a mean of two epochs that is better than either is kept, and nothing is where none is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer import checkpoint, runs
from trainer.checkpoint import Score
from trainer.config import FitConfig
from trainer.session import Session
from trainer.soup import cook, keep_candidate

from .pictures import make_folder

CONFIG = FitConfig(backbone="mobilenet_v3_small", weights="none", image_size=32, soup=2)


def with_bias(session: Session, bias: tuple[float, float, float]) -> None:
    """Make the network answer by its bias alone."""
    head = session.model.classifier.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(bias))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Three epochs that answer with constants: far too sure of one class, far too sure of another, and the worst."""
    session = runs.begin(make_folder(tmp_path / "data"), tmp_path / "run", CONFIG)
    for epoch, bias in enumerate([(9.0, -9.0, 0.0), (-9.0, 9.0, 0.0), (-30.0, -30.0, 30.0)]):
        with_bias(session, bias)
        score, _ = session.validate()
        row = {"epoch": epoch, "loss": 0.0, "val_accuracy": score.accuracy, "val_log_loss": score.log_loss}
        checkpoint.append_history(session.folder, row, before_epoch=epoch)
        keep_candidate(session, epoch)
    return session


def test_only_the_best_candidates_are_kept(session: Session) -> None:
    """Two of three, as was asked for."""
    assert {path.name for path in session.folder.glob("epoch-*")} == {
        "epoch-0000.safetensors",
        "epoch-0001.safetensors",
    }


def test_better_mean_is_kept(session: Session) -> None:
    """The mean of two opposite errors is indifferent, which has less log-loss; candidates and changes are gone."""
    session.state = replace(session.state, best=Score(accuracy=0.0, log_loss=50.0))
    with_bias(session, (1.0, 2.0, 3.0))
    cook(session)
    state, tensors = checkpoint.load(session.folder, "best")
    assert sorted(state.soup_epochs) == [0, 1]
    assert state.best_stage == "fine-tune"
    head = next(value for name, value in tensors.items() if name.endswith("classifier.3.bias"))
    assert torch.equal(head, torch.zeros(3))
    assert session.model.classifier.head.bias.tolist() == [1.0, 2.0, 3.0]
    assert not list(session.folder.glob("epoch-*"))


def test_worse_mean_is_not(session: Session) -> None:
    """Where the probe is better, it stays, and no checkpoint is written."""
    session.state = replace(session.state, best=Score(accuracy=1.0, log_loss=0.1))
    cook(session)
    assert session.state.soup_epochs == ()
    assert not (session.folder / "best.json").exists()
    assert not list(session.folder.glob("epoch-*"))
