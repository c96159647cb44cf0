"""Feed pictures to torch: evaluation through the bundle's own preprocessing, training through augmentation.

A training sample depends on (seed, epoch, index) alone, so workers, their number, and resuming change nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bundle.preprocess import PreprocessSpec, to_input
from trainer.augment import Augmentation, picture_transform
from trainer.data import Picture
from trainer.decoded import pixels_of

Sample = tuple[Tensor, int]


def derive_seed(*parts: int) -> int:
    """Return 63 well-mixed bits from a tuple of integers: one independent stream for each."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class EvaluationPictures(Dataset[Sample]):
    """(uint8 (crop, crop, 3), label index) of every picture, exactly as the server sees it."""

    def __init__(
        self, pictures: tuple[Picture, ...], indices: list[int], spec: PreprocessSpec, *, decoded: Path | None = None
    ) -> None:
        self._pictures, self._indices, self._spec, self._decoded = pictures, indices, spec, decoded

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        pixels = pixels_of(self._pictures[index], self._decoded, cover_px=self._spec.resize_px)
        return torch.from_numpy(to_input(pixels, self._spec).copy()), self._indices[index]


class TrainingPictures(Dataset[Sample]):
    """(uint8 (crop, crop, 3), label index), augmented. The sampler gives (epoch, index) pairs."""

    def __init__(
        self,
        pictures: tuple[Picture, ...],
        indices: list[int],
        spec: PreprocessSpec,
        *,
        augmentation: Augmentation,
        seed: int,
        train_px: int
        | None = None,  # side of the output; default: crop_px. Pictures are decoded for crop_px either way
        decoded: Path | None = None,
    ) -> None:
        self._pictures, self._indices, self._seed, self._decoded = pictures, indices, seed, decoded
        self._cover_px = spec.resize_px
        self._transform = picture_transform(augmentation, spec.scaled(train_px or spec.crop_px))

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        picture = Image.fromarray(pixels_of(self._pictures[index], self._decoded, cover_px=self._cover_px))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, epoch, index))
            tensor: Tensor = self._transform(picture)  # (3, crop, crop) uint8
        return tensor.permute(1, 2, 0).contiguous(), self._indices[index]


@dataclass(frozen=True, kw_only=True)
class EpochBatches:
    """The batches of one epoch, from a given step on: a seeded permutation, or a class-balanced draw."""

    indices: tuple[int, ...]  # label index of every picture
    batch_size: int
    seed: int
    epoch: int
    first_step: int = 0
    balanced: bool = False

    def __len__(self) -> int:
        return steps_per_epoch(len(self.indices), self.batch_size) - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        for step in range(self.first_step, self.first_step + len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, index) for index in batch]

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if not self.balanced:
            return [int(index) for index in torch.randperm(len(self.indices), generator=generator)]
        counts = torch.bincount(torch.tensor(self.indices))
        weights = 1.0 / counts[torch.tensor(self.indices)].double()
        return [int(i) for i in torch.multinomial(weights, len(self.indices), replacement=True, generator=generator)]


class TimedBatches:
    """A loader that counts the seconds its reader waited for batches."""

    def __init__(self, loader: Iterable[list[Tensor]], clock: Callable[[], float]) -> None:
        self._loader, self._clock = loader, clock
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches = iter(self._loader)
        while True:
            asked = self._clock()
            batch = next(batches, None)
            self.waited_seconds += self._clock() - asked
            if batch is None:
                return
            yield batch


def steps_per_epoch(picture_count: int, batch_size: int) -> int:
    """Return the number of steps; a last batch of one picture is left out, since BatchNorm cannot learn from it."""
    whole, rest = divmod(picture_count, batch_size)
    return whole + (rest >= 2)


def training_loader(
    dataset: TrainingPictures, batches: Iterable[list[tuple[int, int]]], *, workers: int, pin: bool
) -> DataLoader[Sample]:
    """Return a loader of (uint8 (N, H, W, 3), int64 (N,)) over exactly those batches."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin)


def evaluation_loader(dataset: EvaluationPictures, *, batch_size: int, workers: int) -> DataLoader[Sample]:
    """Return a loader of (uint8 (N, H, W, 3), int64 (N,)) in order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)
