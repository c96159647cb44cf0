"""torchvision's convolutional classifiers, by their own names; weights come from torchvision's hub or its cache."""

from pathlib import Path
from typing import Final

import torch
import torchvision
from torch import nn

from bundle.preprocess import PreprocessSpec
from trainer.classifier import Backbone, BackboneInfo, Classifier, interpolation, own_weights
from trainer.errors import ConfigError, WeightsError

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_TRANSFORMERS: Final = ("vit_", "swin_", "maxvit")


def names() -> list[str]:
    """Return torchvision's convolutional classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(_TRANSFORMERS)]


def make(name: str, *, weights: str) -> Backbone:
    """Return a network with its 1,000-class head. Raises ConfigError for an unknown name, WeightsError."""
    if name not in names():
        raise ConfigError(f"backbone {name!r} is unknown; `trainer backbones` lists the names, timm's are timm:NAME")
    entry = torchvision.models.get_model_weights(name).DEFAULT
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") and weights != "default" else {}
    try:
        network = torchvision.models.get_model(name, weights=entry if weights == "default" else None, **extra)
    except OSError as error:
        raise WeightsError(
            f"{name}: weights could not be fetched from {entry.url} ({error}); put the file into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or use --weights none or a file"
        ) from error
    _drop_auxiliary(network)
    head_name = _last_linear(network)
    origin, licence = own_weights(network, weights)
    if weights == "default":
        origin, licence = f"torchvision {entry}", "BSD-3-Clause"
    transform = entry.transforms()
    crop, resize = int(transform.crop_size[0]), int(transform.resize_size[0])
    spec = PreprocessSpec(
        resize_px=max(crop, resize), crop_px=crop, interpolation=interpolation(transform.interpolation.value)
    )
    return Backbone(
        model=Classifier(network, head_name),
        spec=spec,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        weights=origin,
        licence=licence,
    )


def infos() -> list[BackboneInfo]:
    """Return what torchvision says of each."""
    return [_info(name) for name in names()]


def _info(name: str) -> BackboneInfo:
    entry = torchvision.models.get_model_weights(name).DEFAULT
    checkpoint = Path(torch.hub.get_dir()) / "checkpoints" / str(entry.url).rsplit("/", 1)[-1]
    return BackboneInfo(
        name=name,
        parameters_m=entry.meta["num_params"] / 1e6,
        gmacs=entry.meta.get("_ops"),
        top1=entry.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        input_px=int(entry.transforms().crop_size[0]),
        offline=checkpoint.exists(),
    )


def _drop_auxiliary(network: nn.Module) -> None:
    """GoogLeNet and Inception return extra logits in training; without them one loss fits every network."""
    if hasattr(network, "aux_logits"):
        setattr(network, "aux_logits", False)  # noqa: B010 -- a plain flag, which nn.Module's types do not admit
        for name in ("aux1", "aux2", "AuxLogits"):
            if getattr(network, name, None) is not None:
                setattr(network, name, None)


def _last_linear(network: nn.Module) -> str:
    """Return the name of the last linear layer; SqueezeNet, which ends in a 1x1 convolution, is given one."""
    if isinstance(network, torchvision.models.SqueezeNet):
        network.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(512, network.num_classes)
        )
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]
