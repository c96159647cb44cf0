"""Augmentations for training, from named presets and single knobs, with torchvision.transforms.v2.

Randomness comes from torch's generator alone: the caller seeds it a sample, so a picture's fate depends on seed,
epoch and index, not on workers or on where a run was resumed.
"""

from dataclasses import dataclass, fields, replace
from typing import Final

import torch
from torch import Tensor
from torchvision.transforms import v2

from bundle.preprocess import PreprocessSpec
from trainer.config import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Every strength resolved; the fields are explained in AugmentConfig."""

    crop_scale: float = 1.0
    rotate_deg: float = 0.0
    translate: float = 0.0
    hflip: float = 0.0
    vflip: float = 0.0
    jitter: float = 0.0
    trivial: bool = False
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


PRESETS: Final[dict[str, Augmentation]] = {
    "none": Augmentation(),
    "light": Augmentation(crop_scale=0.7, hflip=0.5),
    "standard": Augmentation(crop_scale=0.5, hflip=0.5, jitter=0.2, rotate_deg=10),
    "strong": Augmentation(crop_scale=0.35, hflip=0.5, trivial=True, erase=0.25, mixup=0.2, cutmix=1.0),
}


def resolve(config: AugmentConfig) -> Augmentation:
    """Return the preset with every knob that was set put in its place."""
    knobs = {part.name: getattr(config, part.name) for part in fields(Augmentation)}
    return replace(PRESETS[config.augment], **{name: value for name, value in knobs.items() if value is not None})


def picture_transform(augmentation: Augmentation, spec: PreprocessSpec) -> v2.Transform:
    """Return a transform from an RGB picture (PIL) to a uint8 tensor (3, crop_px, crop_px)."""
    interpolation = v2.InterpolationMode(spec.interpolation)
    side = spec.crop_px
    steps: list[torch.nn.Module] = []
    if augmentation.crop_scale < 1:
        scale = (augmentation.crop_scale, 1.0)
        steps.append(v2.RandomResizedCrop(side, scale=scale, interpolation=interpolation, antialias=True))
    else:
        steps += [v2.Resize(spec.resize_px, interpolation=interpolation, antialias=True), v2.CenterCrop(side)]
    if augmentation.rotate_deg or augmentation.translate:
        shift = (augmentation.translate, augmentation.translate) if augmentation.translate else None
        steps.append(
            v2.RandomAffine(augmentation.rotate_deg, translate=shift, interpolation=v2.InterpolationMode.BILINEAR)
        )
    if augmentation.hflip:
        steps.append(v2.RandomHorizontalFlip(augmentation.hflip))
    if augmentation.vflip:
        steps.append(v2.RandomVerticalFlip(augmentation.vflip))
    if augmentation.trivial:
        steps.append(v2.TrivialAugmentWide())
    if augmentation.jitter:
        steps.append(v2.ColorJitter(augmentation.jitter, augmentation.jitter, augmentation.jitter))
    steps.append(v2.PILToTensor())
    if augmentation.erase:
        steps.append(v2.RandomErasing(augmentation.erase, value=127))
    return v2.Compose(steps)


def mix(images: Tensor, targets: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Apply mixup or cutmix (one of them, where both are on) to a float batch.

    images (N, 3, H, W) float, targets (N, C) float rows that sum to 1; returns the same shapes. mixup: Zhang et al.
    2018 (arXiv:1710.09412); cutmix: Yun et al. 2019 (arXiv:1905.04899).
    """
    choices = [name for name in ("mixup", "cutmix") if getattr(augmentation, name) > 0]
    if not choices:
        return images, targets
    name = choices[int(torch.randint(len(choices), ()))]
    alpha = float(getattr(augmentation, name))
    kind = v2.MixUp if name == "mixup" else v2.CutMix
    num_classes = targets.shape[1]
    mixed: tuple[Tensor, Tensor] = kind(alpha=alpha, num_classes=num_classes)(images, targets)
    return mixed
