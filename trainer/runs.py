"""Begin, resume and evaluate a run: what the commands do, without the command line."""

import os
import subprocess
from pathlib import Path

import numpy as np
import torch

from bundle import __version__
from bundle.manifest import MANIFEST_NAME, Provenance
from bundle.repository import load_bundle
from bundle.scores import probabilities
from trainer import checkpoint
from trainer.backbones import build
from trainer.checkpoint import Run, State
from trainer.classifier import Backbone
from trainer.config import FitConfig
from trainer.data import Dataset, Picture, is_split, load_dataset, load_labelled
from trainer.errors import CheckpointError
from trainer.export import bundle_probabilities
from trainer.metrics import Evaluation, evaluate
from trainer.network import Deployed, all_logits, choose_device
from trainer.pictures import EvaluationPictures, evaluation_loader
from trainer.progress import Progress
from trainer.session import EVALUATION_BATCH, Session, restore_model


def begin(data: Path, folder: Path, config: FitConfig) -> Session:
    """Check the data, build the network and write run.json; raises before anything is trained."""
    progress = Progress()
    if (folder / "run.json").exists():
        raise CheckpointError(f"{folder}: holds a run already; continue it with --resume, or choose another --out")
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
    device = choose_device(config.device, threads=config.threads)
    model = Deployed(backbone.model, backbone.mean, backbone.std).to(memory_format=torch.channels_last)
    return Session(
        run=run,
        folder=folder,
        device=device,
        model=model.to(device.name),
        sides=dataset.sides,
        progress=progress,
        state=State(weights="", stage="probe", seed=config.seed, epoch=0, step=0),
    )


def resume(folder: Path) -> Session:
    """Return a session where the run in `folder` stopped; raises CheckpointError."""
    run = checkpoint.read_run(folder)
    name: checkpoint.Name = "last" if (folder / "last.json").exists() else "best"
    state, tensors = checkpoint.load(folder, name)
    device = choose_device(run.config.device, threads=run.config.threads)
    return Session(
        run=run,
        folder=folder,
        device=device,
        model=restore_model(run, tensors).to(device.name),
        sides=checkpoint.read_split(folder),
        progress=Progress(),
        state=state,
    )


def evaluate_target(target: Path, data: Path) -> Evaluation:
    """Evaluate a run with torch, or a bundle with ONNX Runtime, on labelled pictures."""
    if (target / MANIFEST_NAME).exists():
        bundle = load_bundle(target)
        labels = bundle.manifest.contract.labels
        pictures = _pictures(data, labels, run=None)
        return evaluate(bundle_probabilities(bundle, pictures), _targets(pictures, labels), labels)
    run = checkpoint.read_run(target)
    pictures = _pictures(data, run.labels, run=target)
    _, tensors = checkpoint.load(target, "best")
    device = choose_device(run.config.device, threads=run.config.threads)
    targets = _targets(pictures, run.labels)
    loader = evaluation_loader(
        EvaluationPictures(pictures, [int(index) for index in targets], run.spec),
        batch_size=EVALUATION_BATCH,
        workers=0,
    )
    logits, _ = all_logits(restore_model(run, tensors).to(device.name), loader, device)
    return evaluate(probabilities(logits.numpy(), temperature=1.0), targets, run.labels)


def _pictures(data: Path, labels: tuple[str, ...], *, run: Path | None) -> tuple[Picture, ...]:
    """Return the pictures to measure on: of a run's own data folder the held-out side, of a split one test or val."""
    if run is not None and Path(checkpoint.read_run(run).data) == data.resolve():
        sides = checkpoint.read_split(run)
        return sides["test"] or sides["val"]
    if is_split(data):
        defaults = FitConfig()
        dataset = load_dataset(data, seed=0, val_share=0.1, test_share=0.1, max_bad=defaults.max_bad, labels=labels)
        return dataset.sides[dataset.held_out()]
    return load_labelled(data, labels, max_bad=FitConfig().max_bad)


def _targets(pictures: tuple[Picture, ...], labels: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([labels.index(picture.label) for picture in pictures], dtype=np.int64)


def _run(config: FitConfig, data: Path, dataset: Dataset, backbone: Backbone) -> Run:
    return Run(
        config=config,
        data=str(data.resolve()),
        labels=dataset.labels,
        spec=backbone.spec,
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
