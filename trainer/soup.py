"""Average the weights of the best epochs where that is better on validation: a greedy soup.

Wortsman et al. 2022 (arXiv:2203.05482), recipe 1, over the epochs of one run. The candidates' weights lie in the run
folder until the fit ends.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import checkpoint
from trainer.checkpoint import Score
from trainer.session import Session

_PREFIX: Final = "epoch-"


def keep_candidate(session: Session, epoch: int) -> None:
    """Keep the model's weights as those of an epoch, and of all epochs so far only the best `config.soup`."""
    path = _path(session.folder, epoch)
    partial = path.with_name(f".{path.name}")
    save_file({name: value.detach().cpu().contiguous() for name, value in session.model.state_dict().items()}, partial)
    partial.replace(path)
    kept = {_path(session.folder, number) for number in _ranking(session.folder)[: session.run.config.soup]}
    for candidate in session.folder.glob(f"{_PREFIX}*.safetensors"):
        if candidate not in kept:
            candidate.unlink()


def cook(session: Session) -> None:
    """Add one candidate after the other, the best first, where the mean gets better; keep it where it beats `best`."""
    epochs = [epoch for epoch in _ranking(session.folder) if _path(session.folder, epoch).exists()]
    own = {name: value.detach().clone() for name, value in session.model.state_dict().items()}
    chosen: list[int] = []
    best: tuple[Score, Tensor] | None = None
    for epoch in epochs:
        session.model.load_state_dict(_mean([load_file(_path(session.folder, e)) for e in [*chosen, epoch]]))
        score, logits = session.validate()
        if score.beats(best[0] if best else None):
            chosen, best = [*chosen, epoch], (score, logits)
            tensors = checkpoint.best_tensors(session.model.state_dict(), logits)
    if best is not None and len(chosen) > 1 and best[0].beats(session.state.best):
        session.state = replace(
            session.state, best=best[0], best_stage="fine-tune", best_epoch=chosen[0], soup_epochs=tuple(chosen)
        )
        checkpoint.save(session.folder, "best", session.state, tensors)
        listed = ", ".join(str(epoch + 1) for epoch in chosen)
        session.progress.say(f"mean of epochs {listed}: validation accuracy {best[0].accuracy:.4f}, kept")
    else:
        session.progress.say("no mean of epochs is better than the best that there is")
    session.model.load_state_dict(own)
    for epoch in epochs:
        _path(session.folder, epoch).unlink()


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of every weight; counts are those of the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def _ranking(folder: Path) -> list[int]:
    """Return the epochs, the best first."""
    return [int(row["epoch"]) for row in checkpoint.best_first(checkpoint.read_history(folder))]


def _path(folder: Path, epoch: int) -> Path:
    return folder / f"{_PREFIX}{epoch:04d}.safetensors"
