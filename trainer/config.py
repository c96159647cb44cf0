"""Every setting of a fit, once: its default, its unit and its help text; `trainer fit --help` shows this file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
Preset = Literal["none", "light", "standard", "strong"]


def _knob(text: str, *, low: float | None = None, high: float | None = None) -> object:
    return typer.Option(help=text, min=low, max=high)


def parse_duration(text: str) -> float:
    """Return the seconds of "90s", "10m" or "1.5h"; raises typer.BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(text).strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"found {text!r}, wanted a number and s, m or h, such as 90s, 10m or 1h")
    return float(found[1]) * _SECONDS[found[2]]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Named preset plus single knobs; a knob left at None keeps the preset's value."""

    augment: Annotated[Preset, _knob("Choose the augmentation preset.")] = "standard"
    crop_scale: Annotated[
        float | None, _knob("Set the smallest random-crop area, share of the square.", low=0.05, high=1)
    ] = None
    rotate_deg: Annotated[float | None, _knob("Rotate by up to so many degrees.", low=0, high=180)] = None
    translate: Annotated[float | None, _knob("Shift by up to this share of the side.", low=0, high=0.9)] = None
    hflip: Annotated[float | None, _knob("Flip left-right with this probability.", low=0, high=1)] = None
    vflip: Annotated[float | None, _knob("Flip top-bottom with this probability.", low=0, high=1)] = None
    jitter: Annotated[
        float | None, _knob("Vary brightness, contrast, saturation by up to this share.", low=0, high=1)
    ] = None
    trivial: Annotated[bool | None, typer.Option(help="Add one TrivialAugment operation a picture.")] = None
    erase: Annotated[float | None, _knob("Erase a rectangle with this probability.", low=0, high=1)] = None
    mixup: Annotated[float | None, _knob("Mix pairs of pictures, Beta(a, a); 0 is off.", low=0, high=10)] = None
    cutmix: Annotated[float | None, _knob("Paste patches between pictures, Beta(a, a); 0 is off.", low=0, high=10)] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class FitConfig(AugmentConfig):
    """All that decides a run besides the data."""

    backbone: Annotated[str, typer.Option(help="Name the network; `trainer backbones` lists them.")] = (
        "efficientnet_lite0"
    )
    weights: Annotated[str, typer.Option(help="Start from pretrained weights: default, none, or a file.")] = "default"
    image_size: Annotated[
        int | None, _knob("Set the input side in pixels; default: the backbone's.", low=16, high=1024)
    ] = None
    crop_pct: Annotated[
        float | None,
        _knob("Keep this share of the shorter side; default: the backbone's, or closer.", low=0.25, high=1),
    ] = None
    epochs: Annotated[
        int | None,
        _knob("Fine-tune for at most so many epochs; 0 keeps the probe; default: by data size and device.", low=0),
    ] = None
    time_budget: Annotated[
        float | None,
        typer.Option(help="End the fit in this time, such as 90s, 10m or 1h.", metavar="TIME", parser=parse_duration),
    ] = None
    start_image_size: Annotated[
        int | None, _knob("Begin fine-tuning on pictures of this side and let them grow.", low=16, high=1024)
    ] = None
    batch_size: Annotated[int, _knob("Train on so many pictures a step.", low=2)] = 16
    optimizer: Annotated[Literal["adamw", "sgd"], typer.Option(help="Choose the optimizer.")] = "adamw"
    lr: Annotated[float, _knob("Set the head's peak learning rate.", low=0)] = 1e-3
    body_lr_factor: Annotated[float, _knob("Scale the learning rate below the head.", low=0, high=1)] = 0.5
    layer_decay: Annotated[
        float, _knob("Scale the learning rate once more for each block away from the head.", low=0.1, high=1)
    ] = 1.0
    weight_decay: Annotated[float, _knob("Set the weight decay of matrices and filters.", low=0)] = 0.05
    clip_norm: Annotated[float, _knob("Clip the norm of the gradients; 0 is off.", low=0)] = 0.0
    accumulate: Annotated[int, _knob("Compute a step in so many parts, for less memory.", low=1)] = 1
    warmup: Annotated[float, _knob("Warm up for this share of all steps.", low=0, high=0.9)] = 0.1
    loss: Annotated[Literal["cross-entropy", "focal"], typer.Option(help="Choose the loss.")] = "cross-entropy"
    label_smoothing: Annotated[float, _knob("Smooth labels by this share (cross-entropy).", low=0, high=0.9)] = 0.1
    focal_gamma: Annotated[float, _knob("Set the focal loss's focus (focal).", low=0)] = 2.0
    class_weights: Annotated[bool, typer.Option(help="Weigh classes in the loss by inverse frequency.")] = False
    balanced_sampling: Annotated[bool, typer.Option(help="Draw every class equally often.")] = False
    batchnorm: Annotated[
        Literal["auto", "train", "frozen"],
        typer.Option(help="Let BatchNorm statistics follow the pictures, or freeze them; auto: pretrained ones."),
    ] = "auto"
    ema: Annotated[float, _knob("Average weights with this decay a step; 0 is off.", low=0, high=0.9999)] = 0.98
    soup: Annotated[
        int, _knob("Try means of the weights of so many best epochs, keep one if better; 0 is off.", low=0, high=20)
    ] = 0
    compile: Annotated[
        bool, typer.Option(help="Compile the network first: minutes on a CPU, for faster steps; needs a C++ compiler.")
    ] = False
    patience: Annotated[int, _knob("Stop after so many epochs without a better validation score.", low=1)] = 4
    val_share: Annotated[float, _knob("Hold out this share for validation (unsplit data).", low=0.02, high=0.5)] = 0.15
    test_share: Annotated[float, _knob("Hold out this share for the test (unsplit data).", low=0, high=0.5)] = 0.15
    group_by: Annotated[
        str, typer.Option(help="Keep pictures of a group on one side: a regex whose (group) is found in the path.")
    ] = ""
    apply: Annotated[
        Path | None,
        typer.Option(help="Relabel and drop pictures as this fixes.csv says; files stay untouched."),
    ] = None
    max_bad: Annotated[float, _knob("Refuse data with more than this share of unreadable files.", low=0, high=1)] = 0.05
    seed: Annotated[int, _knob("Seed split, order, augmentation and head.", low=0)] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Choose where to train.")] = "auto"
    threads: Annotated[int, _knob("Use so many CPU threads; 0: all that this process may use.", low=0)] = 0
    workers: Annotated[int, _knob("Decode in so many worker processes; 0: in the training process.", low=0)] = 0
    checkpoint_every: Annotated[int, _knob("Write `last` every so many steps; 0: every epoch.", low=0)] = 0

    @property
    def has_frozen_batchnorm(self) -> bool:
        """Whether BatchNorm keeps the statistics that it has: a few hundred pictures give worse ones.

        "auto" keeps pretrained ones: the probe's head was fitted to features that they normalised, and another
        normalisation would spoil it at the first step. Random weights have none worth keeping.
        """
        return self.weights != "none" if self.batchnorm == "auto" else self.batchnorm == "frozen"
