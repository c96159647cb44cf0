"""A run in this process: what its stages share, from the network to where it stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainer.backbones import build
from trainer.checkpoint import Run, State, part
from trainer.data import Picture, Side
from trainer.network import Deployed, Device
from trainer.optim import inverse_frequency
from trainer.pictures import EvaluationPictures, Sample, evaluation_loader
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

    def indices(self, side: Side) -> list[int]:
        """Return the label index of every picture of a side."""
        place = {label: index for index, label in enumerate(self.run.labels)}
        return [place[picture.label] for picture in self.sides[side]]

    def evaluation(self, side: Side) -> DataLoader[Sample]:
        """Return a loader of a side through the serving preprocessing."""
        pictures = EvaluationPictures(self.sides[side], self.indices(side), self.run.spec)
        return evaluation_loader(pictures, batch_size=EVALUATION_BATCH, workers=self.run.config.workers)

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
