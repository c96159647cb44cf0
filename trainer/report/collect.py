"""Gather what a report shows: from a run folder, its best weights, and the pictures they were measured on.

Everything is measured on the held-out side (test where there is one, else validation) with calibrated probabilities,
as the exported model answers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bundle.manifest import Interval, Manifest
from bundle.preprocess import load_input
from bundle.scores import probabilities
from trainer import checkpoint
from trainer.checkpoint import Run, State, part
from trainer.data import SIDES, BadFile, Picture, Side
from trainer.metrics import Evaluation, evaluate, fit_temperature
from trainer.network import Deployed, all_logits, choose_device
from trainer.pictures import EvaluationPictures, evaluation_loader
from trainer.preview import contact_sheet
from trainer.proof import Parity
from trainer.report.gradcam import grad_cam
from trainer.report.pictures import overlay
from trainer.session import EVALUATION_BATCH, restore_model

SHOWN: Final = 9  # pictures of each kind

Sides = dict[Side, tuple[Picture, ...]]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A held-out picture, what the network said of it, and where it looked for that."""

    name: str
    truth: str
    answer: str
    score: float  # of the answer
    truth_score: float
    picture: Image.Image
    heat: Image.Image


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: how many pictures, how often found, how often rightly named; None where that cannot be said."""

    label: str
    counts: dict[Side, int]
    recall: Interval | None
    precision: Interval | None
    f1: Interval


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the run's own files say of its data."""

    unreadable: tuple[BadFile, ...]
    repeated: int  # files that another one on the same side equals, byte for byte
    across_sides: tuple[tuple[str, ...], ...]  # names of equal files on different sides
    two_labels: tuple[tuple[str, ...], ...]  # names of equal files under different labels


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report of a run shows."""

    title: str
    run: Run
    state: State
    history: list[dict[str, float | int | str]]
    fine_tune_seconds: float
    held_out: Side
    counts: dict[Side, int]
    temperature: float
    raw: Evaluation  # at temperature 1
    calibrated: Evaluation
    confidences: NDArray[np.float64]  # (N,) of the answers, calibrated
    raw_confidences: NDArray[np.float64]  # (N,)
    hits: NDArray[np.bool_]  # (N,)
    classes: tuple[ClassRow, ...]
    errors: tuple[Example, ...]
    weak_hits: tuple[Example, ...]
    augmented: Image.Image | None
    data: DataFacts

    @property
    def epochs(self) -> int:
        """How many epochs of fine-tuning were planned."""
        return self.state.plan.epochs if self.state.plan else self.run.config.epochs or 0


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What an export adds to its run's report."""

    manifest: Manifest
    parity: tuple[Parity, ...]
    sizes: dict[str, int]  # bytes of every model file


def collect(folder: Path) -> Report:
    """Measure and gather; raises CheckpointError where `folder` holds no run with a checkpoint."""
    run = checkpoint.read_run(folder)
    state, tensors = checkpoint.load(folder, "best")
    sides = checkpoint.read_split(folder)
    device = choose_device("cpu", threads=run.config.threads)
    model = restore_model(run, tensors)
    held_out: Side = "test" if sides["test"] else "val"

    def logits_of(side: Side) -> NDArray[np.float32]:
        stored = part(tensors, "validation").get("logits")
        if side == "val" and stored is not None:
            return stored.numpy()
        pictures = EvaluationPictures(sides[side], [0] * len(sides[side]), run.spec)
        loader = evaluation_loader(pictures, batch_size=EVALUATION_BATCH, workers=0)
        return all_logits(model, loader, device)[0].numpy()

    val_logits = logits_of("val")
    temperature = fit_temperature(val_logits.astype(np.float64), _targets(run, sides["val"]))
    logits = val_logits if held_out == "val" else logits_of(held_out)
    targets = _targets(run, sides[held_out])
    raw, calibrated = (probabilities(logits, temperature=value) for value in (1.0, temperature))
    history = checkpoint.read_history(folder)
    evaluation = evaluate(calibrated, targets, run.labels)
    answers, hits = calibrated.argmax(1), calibrated.argmax(1) == targets
    order = np.argsort(-calibrated.max(1), kind="stable")
    examples = _Examples(model, run, sides[held_out], calibrated, targets)
    return Report(
        title=folder.resolve().name,
        run=run,
        state=state,
        history=history,
        fine_tune_seconds=checkpoint.read_state(folder, "last").fine_tune_seconds if history else 0.0,
        held_out=held_out,
        counts={side: len(sides[side]) for side in SIDES},
        temperature=temperature,
        raw=evaluate(raw, targets, run.labels),
        calibrated=evaluation,
        confidences=calibrated.max(1),
        raw_confidences=raw.max(1),
        hits=answers == targets,
        classes=_class_rows(evaluation, sides),
        errors=examples.show([index for index in order if not hits[index]]),
        weak_hits=examples.show([index for index in order[::-1] if hits[index]]),
        augmented=_augmented(run, sides["train"]),
        data=_data_facts(sides, checkpoint.read_unreadable(folder)),
    )


def _targets(run: Run, pictures: Sequence[Picture]) -> NDArray[np.int64]:
    return np.array([run.labels.index(picture.label) for picture in pictures], dtype=np.int64)


@dataclass(frozen=True)
class _Examples:
    """The held-out pictures with their answers, from which a few are shown."""

    model: Deployed
    run: Run
    pictures: tuple[Picture, ...]
    scores: NDArray[np.float64]  # (N, C)
    targets: NDArray[np.int64]  # (N,)

    def show(self, indices: Sequence[int]) -> tuple[Example, ...]:
        """Return the first few whose files are still where they were."""
        chosen = [index for index in indices if self.pictures[index].path.is_file()][:SHOWN]
        if not chosen:
            return ()
        images = np.stack([load_input(self.pictures[index].path.read_bytes(), self.run.spec) for index in chosen])
        answers = self.scores[chosen].argmax(1)
        heat = grad_cam(self.model, torch.from_numpy(images), torch.from_numpy(answers))
        return tuple(self._example(*row) for row in zip(chosen, images, heat, strict=True))

    def _example(self, index: int, pixels: NDArray[np.uint8], heat: Tensor) -> Example:
        row, target = self.scores[index], int(self.targets[index])
        return Example(
            name=self.pictures[index].path.name,
            truth=self.run.labels[target],
            answer=self.run.labels[int(row.argmax())],
            score=float(row.max()),
            truth_score=float(row[target]),
            picture=Image.fromarray(pixels),
            heat=overlay(pixels, heat.numpy()),
        )


def _class_rows(evaluation: Evaluation, sides: Sides) -> tuple[ClassRow, ...]:
    counts = {side: Counter(picture.label for picture in pictures) for side, pictures in sides.items()}
    return tuple(
        ClassRow(
            label=row.label,
            counts={side: counts[side][row.label] for side in SIDES},
            recall=row.recall,
            precision=row.precision,
            f1=row.f1,
        )
        for row in evaluation.classes
    )


def _augmented(run: Run, pictures: tuple[Picture, ...]) -> Image.Image | None:
    """Return the contact sheet; None where the training files have been moved since."""
    there = tuple(picture for picture in pictures if picture.path.is_file())
    return contact_sheet(there, run.config) if there else None


def _data_facts(sides: Sides, unreadable: tuple[BadFile, ...]) -> DataFacts:
    by_content: defaultdict[str, list[tuple[Side, Picture]]] = defaultdict(list)
    for side, pictures in sides.items():
        for picture in pictures:
            by_content[picture.sha256].append((side, picture))
    groups = [group for group in by_content.values() if len(group) > 1]

    def names(group: list[tuple[Side, Picture]]) -> tuple[str, ...]:
        return tuple(f"{side}: {picture.label}/{picture.path.name}" for side, picture in group)

    return DataFacts(
        unreadable=unreadable,
        repeated=sum(len(group) - len({side for side, _ in group}) for group in groups),
        across_sides=tuple(names(group) for group in groups if len({side for side, _ in group}) > 1),
        two_labels=tuple(names(group) for group in groups if len({picture.label for _, picture in group}) > 1),
    )
