"""A run in this process: what its stages share, from the network to where it stands."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from trainer import checkpoint
from trainer.augment import resolve
from trainer.backbones import build
from trainer.checkpoint import Run, Score, State, part
from trainer.data import Picture, Side
from trainer.distributed import World
from trainer.network import Deployed, Device, all_features, all_logits
from trainer.optim import inverse_frequency
from trainer.pictures import EvaluationPictures, Sample, TrainingPictures, evaluation_loader
from trainer.progress import Progress

EVALUATION_BATCH: Final = 32


@dataclass(kw_only=True)
class Session:
    """Fixed inputs, and the state that moves."""

    run: Run
    folder: Path
    device: Device
    model: Deployed
    sides: dict[Side, tuple[Picture, ...]]
    progress: Progress
    state: State
    world: World = field(default_factory=World)
    trained: nn.Module = field(init=False)  # model.classifier, or what averages its gradients over processes
    compiled: nn.Module | None = None  # the same for full batches, where it was asked for
    clock: Callable[[], float] = time.monotonic
    started: float = field(default_factory=time.monotonic)  # by that clock
    used_before: float = 0.0  # seconds: of reading the data, and of earlier processes where the run is resumed
    decoded: Path | None = None  # folder of decoded pictures, while the fit lasts

    def __post_init__(self) -> None:
        self.trained = self.model.classifier

    def elapsed(self) -> float:
        """Return the seconds of this process's part of the run."""
        return self.clock() - self.started

    def used_seconds(self) -> float:
        """Return the seconds of the whole run, earlier processes' included."""
        return self.used_before + self.elapsed()

    def indices(self, side: Side) -> list[int]:
        """Return the label index of every picture of a side."""
        place = {label: index for index, label in enumerate(self.run.labels)}
        return [place[picture.label] for picture in self.sides[side]]

    def evaluation(self, side: Side) -> DataLoader[Sample]:
        """Return a loader of this process's part of a side, through the serving preprocessing."""
        places, indices = self.world.places(len(self.sides[side])), self.indices(side)
        own = tuple(self.sides[side][place] for place in places)
        pictures = EvaluationPictures(own, [indices[place] for place in places], self.run.spec, decoded=self.decoded)
        return evaluation_loader(pictures, batch_size=EVALUATION_BATCH, workers=self.run.config.workers)

    def training_pictures(self, *, train_px: int | None = None) -> TrainingPictures:
        """Return the training side as it is augmented, at another side in pixels where one is given."""
        return TrainingPictures(
            self.sides["train"],
            self.indices("train"),
            self.run.spec,
            augmentation=resolve(self.run.config),
            seed=self.run.config.seed,
            train_px=train_px,
            decoded=self.decoded,
        )

    def logits(self, side: Side) -> tuple[Tensor, Tensor]:
        """Return float32 logits (N, C) and int64 targets (N,) of a side, on the CPU of every process."""
        return self._gathered(all_logits(self.model, self.evaluation(side), self.device), side)

    def features(self, side: Side) -> tuple[Tensor, Tensor]:
        """Return float32 features (N, F) and int64 targets (N,) of a side, on the CPU of every process."""
        return self._gathered(all_features(self.model, self.evaluation(side), self.device), side)

    def validate(self) -> tuple[Score, Tensor]:
        """Return the score of the weights as they are, and their logits (N, C), on validation."""
        logits, targets = self.logits("val")
        accuracy = float((logits.argmax(1) == targets).double().mean())
        return Score(accuracy=accuracy, log_loss=float(F.cross_entropy(logits, targets))), logits

    def save(self, name: checkpoint.Name, tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint of the state and these tensors, once for all processes."""
        if self.world.is_first:
            self.state = checkpoint.save(self.folder, name, self.state, tensors)

    def _gathered(self, rows: tuple[Tensor, Tensor], side: Side) -> tuple[Tensor, Tensor]:
        count = len(self.sides[side])
        return self.world.gathered(rows[0], count=count), self.world.gathered(rows[1], count=count)

    def class_weights(self) -> Tensor | None:
        """Return loss weights (C,) by inverse frequency, where they were asked for."""
        if not self.run.config.class_weights:
            return None
        return inverse_frequency(self.indices("train"), len(self.run.labels))


def restore_model(run: Run, tensors: dict[str, Tensor]) -> Deployed:
    """Return the network of a run with the weights of a checkpoint."""
    backbone = build(run.config.backbone, class_count=len(run.labels), weights="none", image_size=run.config.image_size)
    model = Deployed(backbone.model, run.mean, run.std)
    model.load_state_dict(part(tensors, "model"))
    return model.to(memory_format=torch.channels_last)
