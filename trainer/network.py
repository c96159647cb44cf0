"""The network as it is deployed: uint8 NHWC in, logits out, normalisation inside; and the device it runs on."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trainer.classifier import Classifier
from trainer.errors import ConfigError
from trainer.pictures import Sample


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where tensors live, and how the arithmetic is done there."""

    name: str  # "cpu" or "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 on CUDA; plain fp32 on CPU, where bf16 measured slower (15 against 20 pictures/s on two cores)."""
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.name == "cuda" else nullcontext()


def choose_device(wanted: str, *, threads: int) -> Device:
    """Return the device; raises ConfigError where CUDA is asked for and absent. Sets torch's CPU threads."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("asked for --device cuda, torch finds no CUDA device; check the driver, or use --device cpu")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    return Device(name="cuda" if available and wanted != "cpu" else "cpu")


class Deployed(nn.Module):
    """uint8 (N, H, W, 3) -> logits (N, C) float32."""

    mean: Tensor
    scale: Tensor

    def __init__(self, classifier: Classifier, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Return float32 (N, 3, H, W), zero mean and unit variance over the pretraining data."""
        planes = images.permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W): a channels_last view, no copy
        return (planes.float() - self.mean) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return self.classifier(self.normalise(images))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class Mirrored(nn.Module):
    """uint8 (N, H, W, 3) -> the mean of a network's logits for pictures and their mirror images, (N, C) float32."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C)."""
        mean: Tensor = (self.model(images) + self.model(images.flip(2))) / 2  # axis 2: left to right
        return mean


@torch.no_grad()
def all_logits(model: nn.Module, loader: DataLoader[Sample], device: Device) -> tuple[Tensor, Tensor]:
    """Return float32 logits (N, C) and int64 targets (N,) on the CPU, the model in evaluation mode."""
    model.eval()
    logits, targets = [], []
    for images, labels in loader:
        with device.autocast():
            logits.append(model(images.to(device.name)).float().cpu())
        targets.append(labels)
    return torch.cat(logits), torch.cat(targets)


@torch.no_grad()
def all_features(model: Deployed, loader: Iterable[tuple[Tensor, Tensor]], device: Device) -> tuple[Tensor, Tensor]:
    """Return float32 features (N, F) and int64 targets (N,) on the CPU, the model in evaluation mode."""
    model.eval()
    features, targets = [], []
    for images, labels in loader:
        with device.autocast():
            features.append(model.classifier.features(model.normalise(images.to(device.name))).float().cpu())
        targets.append(labels)
    return torch.cat(features), torch.cat(targets)
