"""Begin, resume and evaluate a run: what the commands do, without the command line."""

import os
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from bundle import __version__
from bundle.manifest import Provenance
from bundle.runtime import Choice
from trainer import checkpoint
from trainer.answers import answer
from trainer.backbones import build
from trainer.checkpoint import Run, State
from trainer.classifier import Backbone
from trainer.config import FitConfig
from trainer.data import Dataset, Picture, Side, load_dataset
from trainer.distributed import World
from trainer.errors import ConfigError
from trainer.metrics import Evaluation, evaluate
from trainer.network import Deployed, choose_device
from trainer.progress import Progress
from trainer.session import Session, restore_model


@dataclass(frozen=True, kw_only=True)
class _Start:
    """From where a session goes on: what the first process read, and the others cannot."""

    run: Run
    sides: dict[Side, tuple[Picture, ...]]
    state: State
    tensors: dict[str, Tensor]
    elapsed: float = 0.0  # seconds that reading took


def begin(data: Path, folder: Path, config: FitConfig, *, world: World | None = None) -> Session:
    """Check the data, build the network and write run.json; raises before anything is trained."""
    world = world or World()
    return _session(world.from_first(lambda: _begin(data, folder, config, process_count=world.size)), folder, world)


def _begin(data: Path, folder: Path, config: FitConfig, *, process_count: int) -> _Start:
    progress, started = Progress(), time.monotonic()
    _check_options(config, process_count)
    checkpoint.check_free(folder)
    dataset = load_dataset(
        data,
        seed=config.seed,
        val_share=config.val_share,
        test_share=config.test_share,
        max_bad=config.max_bad,
        group_by=config.group_by,
        fixes=config.apply,
    )
    for item in dataset.bad:
        progress.say(f"left out: {item.path}: {item.reason}")
    counts = ", ".join(f"{side} {len(pictures)}" for side, pictures in dataset.sides.items())
    progress.say(f"{data}: {len(dataset.labels)} classes, {counts}, {len(dataset.bad)} unreadable")
    if dataset.fixes:
        progress.say(f"{config.apply}: {dataset.fixes}")
    torch.manual_seed(config.seed)
    backbone = build(
        config.backbone, class_count=len(dataset.labels), weights=config.weights, image_size=config.image_size
    )
    run = _run(config, data, dataset, backbone)
    checkpoint.write_run(folder, run, dataset)
    return _Start(
        run=run,
        sides=dataset.sides,
        state=State(weights="", stage="probe", seed=config.seed, epoch=0, step=0),
        tensors=checkpoint.prefixed("model", Deployed(backbone.model, run.mean, run.std).state_dict()),
        elapsed=time.monotonic() - started,
    )


def resume(folder: Path, *, world: World | None = None) -> Session:
    """Return a session where the run in `folder` stopped, with any number of processes; raises CheckpointError."""
    world = world or World()
    return _session(world.from_first(lambda: _resume(folder, process_count=world.size)), folder, world)


def _resume(folder: Path, *, process_count: int) -> _Start:
    run = checkpoint.read_run(folder)
    _check_options(run.config, process_count)
    name: checkpoint.Name = "last" if (folder / "last.json").exists() else "best"
    state, tensors = checkpoint.load(folder, name)
    return _Start(run=run, sides=checkpoint.read_split(folder), state=state, tensors=tensors)


def _check_options(config: FitConfig, process_count: int) -> None:
    if config.batch_size < process_count:
        raise ConfigError(f"--batch-size {config.batch_size} is that of all {process_count} processes; raise it")
    if process_count > 1 and (config.time_budget or config.accumulate > 1 or config.soup):
        raise ConfigError("--time-budget, --accumulate and --soup are for one process; leave them out under torchrun")
    if config.compile and config.time_budget:
        raise ConfigError("--compile takes minutes that no plan foresees; leave out --time-budget or --compile")


def _session(start: _Start, folder: Path, world: World) -> Session:
    config = start.run.config
    device = choose_device(config.device, threads=world.threads(config.threads))
    return Session(
        run=start.run,
        folder=folder,
        device=device,
        model=restore_model(start.run, start.tensors).to(device.name),
        sides=start.sides,
        progress=Progress(None if world.is_first else Console(quiet=True)),
        state=start.state,
        world=world,
        used_before=start.elapsed + start.state.probe_seconds + start.state.fine_tune_seconds,
    )


def evaluate_target(target: Path, data: Path, *, variant: Choice = "auto") -> Evaluation:
    """Evaluate a run with torch, or a bundle with ONNX Runtime, on labelled pictures."""
    answers = answer(target, data, variant=variant)
    return evaluate(answers.scores, answers.targets, answers.labels)


def _run(config: FitConfig, data: Path, dataset: Dataset, backbone: Backbone) -> Run:
    spec = backbone.spec
    if config.crop_pct is not None:
        spec = replace(spec, resize_px=round(spec.crop_px / config.crop_pct))
    return Run(
        config=config,
        data=str(data.resolve()),
        labels=dataset.labels,
        spec=spec,
        mean=backbone.mean,
        std=backbone.std,
        provenance=Provenance(
            backbone=config.backbone,
            weights=backbone.weights,
            weights_licence=backbone.licence,
            data_fingerprint=dataset.fingerprint(),
            split=dataset.split,
            fixes=dataset.fixes,
            seed=config.seed,
            libraries={"calotype": __version__},
            commit=_commit(),
        ),
    )


def _commit() -> str | None:
    """Return the commit of the code that trains, where it runs from a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return os.environ.get("CALOTYPE_COMMIT")
    result = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607 -- constant command
    return result.stdout.strip() or None
