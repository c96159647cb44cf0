"""The end of an epoch: score the averaged weights, keep the best, write the history, say whether another may follow."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer import checkpoint
from trainer.budget import Plan
from trainer.checkpoint import Score, State
from trainer.session import Session
from trainer.soup import keep_candidate


def finish_epoch(
    session: Session, epoch: int, average: dict[str, Tensor], *, board: SummaryWriter | None, started: float
) -> State:
    """Score the averaged weights on validation; keep them as `best` where they are."""
    own = {name: value.detach().clone() for name, value in session.model.state_dict().items()}
    session.model.load_state_dict(average if session.run.config.ema else own)
    session.world.align(session.model)
    score, logits = session.validate()
    state = session.world.from_first(lambda: _record(session, epoch, score, logits, board=board, started=started))
    session.model.load_state_dict(own)
    return state


def _record(
    session: Session, epoch: int, score: Score, logits: Tensor, *, board: SummaryWriter | None, started: float
) -> State:
    """Write an epoch's score into the run folder; return where the run stands after it."""
    state, config, plan = session.state, session.run.config, session.state.plan
    assert plan is not None
    loss = state.loss_sum / state.step
    seconds = state.fine_tune_seconds + session.clock() - started  # a resumed epoch counts from there
    state = replace(state, epoch=epoch + 1, step=0, loss_sum=0.0, fine_tune_seconds=seconds)
    if score.beats(state.best):
        state = replace(state, best=score, best_stage="fine-tune", best_epoch=epoch)
        checkpoint.save(session.folder, "best", state, checkpoint.best_tensors(session.model.state_dict(), logits))
    row: dict[str, float | int | str] = {
        "epoch": epoch,
        "loss": loss,
        "val_accuracy": score.accuracy,
        "val_log_loss": score.log_loss,
    }
    checkpoint.append_history(session.folder, row, before_epoch=epoch)
    if config.soup:
        keep_candidate(session, epoch)
    for name in ("loss", "val_accuracy", "val_log_loss"):
        assert board is not None
        board.add_scalar(name, row[name], epoch)
    session.progress.epoch_done(epoch, loss=loss, accuracy=score.accuracy)
    waited = epoch - max(state.best_epoch, _best_epoch_number(session.folder))
    return replace(state, finished=waited >= config.patience or epoch + 1 == plan.epochs)


def fits(session: Session, plan: Plan, epoch: int) -> bool:
    """Say whether an epoch ends within the budget: as long as those before took, or as planned for the first."""
    assert plan.budget_seconds is not None
    if not epoch:
        return True
    each = session.state.fine_tune_seconds / epoch
    return session.used_seconds() + each <= plan.budget_seconds


def best_epoch(folder: Path) -> Score | None:
    """Return the score of the best epoch of fine-tuning; None before the first."""
    rows = checkpoint.best_first(checkpoint.read_history(folder))
    return Score(accuracy=float(rows[0]["val_accuracy"]), log_loss=float(rows[0]["val_log_loss"])) if rows else None


def _best_epoch_number(folder: Path) -> int:
    """Return the best epoch of fine-tuning: patience counts from there, whether or not it beat the probe."""
    rows = checkpoint.best_first(checkpoint.read_history(folder))
    return max(int(row["epoch"]) for row in rows if row["val_accuracy"] == rows[0]["val_accuracy"])
