"""The fit: a linear probe on features computed once, then fine-tuning of everything from that head.

The better of the two on validation is kept. All randomness derives from (seed, epoch, step): a run that is killed and
resumed ends, on a CPU, with the same bits as one that was not.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer import checkpoint
from trainer.augment import resolve
from trainer.budget import Plan
from trainer.checkpoint import Score, part, prefixed
from trainer.compiled import compiled, compiler_errors
from trainer.decoded import decoded_folder
from trainer.distributed import SharedBatches
from trainer.epoch_end import best_epoch, finish_epoch, fits
from trainer.errors import Interrupted
from trainer.interruption import interruptible
from trainer.network import Deployed
from trainer.optim import (
    lr_factor,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_batchnorm,
    update_average,
)
from trainer.pace import check_probe, make_plan
from trainer.pictures import (
    EpochBatches,
    TimedBatches,
    derive_seed,
    steps_per_epoch,
    training_loader,
)
from trainer.session import Session
from trainer.soup import cook
from trainer.step import take_step
from trainer.view import choose_view


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a fit ended."""

    probe: Score
    fine_tuned: Score | None  # the best epoch
    kept: str
    seconds_probe: float
    seconds_fine_tune: float
    waited_share: float  # of fine-tuning, that training waited for pictures
    verdict: str  # how a plan with a budget turned out; empty without one


def fit(session: Session) -> Outcome:
    """Run both stages from where the session's state stands; returns both scores. Raises Interrupted."""
    began = session.clock()
    keeping = decoded_folder(session.folder) if session.world.is_first else nullcontext()  # the others decode anew
    with keeping as session.decoded:
        if session.state.probe is None:
            _probe(session)
        seconds_probe, before = session.clock() - began, session.state.data_wait_seconds
        plan = session.state.plan
        assert plan is not None
        session.progress.say(str(plan))
        if plan.epochs and not session.state.finished:
            _fine_tune(session, plan)
    state = session.state
    assert state.probe is not None
    seconds_fine_tune = session.clock() - began - seconds_probe
    return Outcome(
        probe=state.probe,
        fine_tuned=best_epoch(session.folder),
        kept=state.best_stage,
        seconds_probe=seconds_probe,
        seconds_fine_tune=seconds_fine_tune,
        waited_share=(state.data_wait_seconds - before) / max(seconds_fine_tune, 1e-9),
        verdict=plan.verdict(session.used_seconds(), epochs=state.epoch),
    )


def _probe(session: Session) -> None:
    started = session.clock()
    session.world.from_first(lambda: check_probe(session))
    session.progress.say("linear probe: computing features once")
    view = choose_view(session)
    session.world.from_first(lambda: checkpoint.replace_run(session.folder, session.run))
    probe = view.probe
    head = session.model.classifier.head
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    score = Score(accuracy=probe.accuracy, log_loss=probe.log_loss)
    session.progress.say(f"linear probe: validation accuracy {score.accuracy:.4f}, log-loss {score.log_loss:.4f}")
    seconds = session.clock() - started
    session.state = replace(
        session.state,
        probe=score,
        best=score,
        stage="fine-tune",
        chose_crop=view.is_choice,
        probe_seconds=seconds,
    )
    plan = session.world.from_first(lambda: make_plan(session, view.val_seconds))
    session.state = replace(session.state, plan=plan)
    session.save("best", checkpoint.best_tensors(session.model.state_dict(), view.logits))


def _fine_tune(session: Session, plan: Plan) -> None:
    config, state = session.run.config, session.state
    model = session.model
    session.trained = session.world.wrap(model.classifier, frozen_batchnorm=config.has_frozen_batchnorm)
    if config.compile:
        session.compiled = compiled(session.trained)
    optimizer = make_optimizer(model.classifier, config)
    tensors = session.world.from_first(lambda: _last_tensors(session.folder))
    if not tensors and config.weights == "none":
        _forget_probe(model)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if tensors:
        model.load_state_dict(part(tensors, "model"))
        average = part(tensors, "average")
        average = {name: value.to(session.device.name) for name, value in average.items()}
        restore_optimizer(optimizer, part(tensors, "optimizer"))
    is_first, folder = session.world.is_first, session.folder / "tensorboard"
    writer = SummaryWriter(folder, purge_step=state.epoch) if is_first else nullcontext()
    with writer as board, interruptible(is_patient=session.world.size > 1) as stop:
        for epoch in range(state.epoch, plan.epochs):
            if plan.budget_seconds is not None and not fits(session, plan, epoch):
                session.progress.say(f"stopped after {epoch} of {plan.epochs} epochs: another would end too late")
                break
            started = session.clock()
            _epoch(session, epoch, plan, optimizer=optimizer, average=average, stop=stop)
            session.state = finish_epoch(session, epoch, average, board=board, started=started)
            session.save("last", _all_tensors(model, average, optimizer))
            if session.state.finished and epoch + 1 < plan.epochs:
                session.progress.say(f"stopped early: no better epoch in {config.patience}")
                break
    if config.soup:
        cook(session)
    session.state = replace(session.state, finished=True)


def _forget_probe(model: Deployed) -> None:
    """Begin with a head of zeros: one fitted to features that nothing has trained does not survive the first batch.

    BatchNorm that has seen nothing passes features through as they are, tiny, so that the probe's weights are huge; in
    training the same features are scaled to one. MobileNetV3-Small from scratch: first loss 2e6, with zeros ln C.
    """
    with torch.no_grad():
        model.classifier.head.weight.zero_()
        model.classifier.head.bias.zero_()


def _epoch(
    session: Session,
    epoch: int,
    plan: Plan,
    *,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
    stop: list[int],
) -> None:
    config = session.run.config
    indices = tuple(session.indices("train"))
    steps = steps_per_epoch(len(indices), config.batch_size)
    batches = EpochBatches(
        indices=indices,
        batch_size=config.batch_size,
        seed=config.seed,
        epoch=epoch,
        first_step=session.state.step,
        balanced=config.balanced_sampling,
    )
    augmentation = resolve(config)
    pictures = session.training_pictures(train_px=plan.epoch_px[epoch])
    has_mixing = bool(augmentation.mixup or augmentation.cutmix)
    shared = SharedBatches(batches=batches, world=session.world, with_neighbour=has_mixing)
    loader = TimedBatches(
        training_loader(pictures, shared, workers=config.workers, pin=session.device.name == "cuda"), session.clock
    )
    class_weights = session.class_weights()
    set_batchnorm(session.model, frozen=config.has_frozen_batchnorm)
    with session.progress.epoch(epoch, total=steps, done=session.state.step) as bar:
        for step, (images, targets) in enumerate(loader, start=session.state.step):
            torch.manual_seed(derive_seed(config.seed, epoch, step, 1))  # dropout, mixup: one stream a step
            factor = lr_factor(epoch * steps + step, total_steps=plan.epochs * steps, warmup=config.warmup)
            count = min(config.batch_size, len(indices) - step * config.batch_size)  # of all processes together
            with compiler_errors():
                loss = take_step(
                    session,
                    optimizer,
                    images=images,
                    targets=targets,
                    class_weights=class_weights,
                    factor=factor,
                    batch_count=count,
                )
            if config.ema:
                update_average(average, session.model, decay=config.ema, step=epoch * steps + step)
            session.state = replace(session.state, epoch=epoch, step=step + 1, loss_sum=session.state.loss_sum + loss)
            bar.advance(pictures=count, loss=loss)
            is_due = config.checkpoint_every and (step + 1) % config.checkpoint_every == 0
            must_stop = session.world.any(bool(stop))
            if must_stop or is_due:
                session.save("last", _all_tensors(session.model, average, optimizer))
            if must_stop:
                raise Interrupted(
                    f"interrupted; continue with `trainer fit {session.run.data} --out {session.folder} --resume`"
                )
    waited = session.state.data_wait_seconds + loader.waited_seconds
    session.state = replace(session.state, data_wait_seconds=waited)


def _last_tensors(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load(folder, "last")[1] if (folder / "last.json").exists() else {}


def _all_tensors(model: Deployed, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        **prefixed("model", model.state_dict()),
        **prefixed("average", average),
        **prefixed("optimizer", optimizer_tensors(optimizer)),
    }
