"""The one form of every pretrained network: `features(images)` is what enters the last linear layer, `head` that layer.

Knows no family: those are `lite_models`, `torchvision_models` and `timm_models`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bundle.preprocess import PreprocessSpec
from trainer.errors import WeightsError


class Classifier(nn.Module):
    """A backbone with its own head. `forward`: normalised float (N, 3, H, W) -> logits (N, C)."""

    def __init__(self, network: nn.Module, head_name: str) -> None:
        super().__init__()
        self.network = network
        self._head_name = head_name

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, (C, F)."""
        return cast("nn.Linear", self.network.get_submodule(self._head_name))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return cast("Tensor", self.network(images))

    def replace_head(self, class_count: int) -> None:
        """Put a fresh head of zeros for class_count labels in place of the pretrained one."""
        head = nn.Linear(self.head.in_features, class_count)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        parent, _, leaf = self._head_name.rpartition(".")
        setattr(self.network.get_submodule(parent), leaf, head)

    def features(self, images: Tensor) -> Tensor:
        """Return what enters the head, (N, F)."""
        return self.with_features(images)[1]

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, C), and what enters the head, (N, F)."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            logits = self(images)
        finally:
            hook.remove()
        return logits, caught[0]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A classifier with what its weights expect of a picture."""

    model: Classifier
    spec: PreprocessSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str  # origin, for the record
    licence: str


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What `trainer backbones` prints; None where the library does not say."""

    name: str
    parameters_m: float | None
    gmacs: float | None
    top1: float | None
    input_px: int | None
    offline: bool  # whether the default weights are on this machine


def own_weights(network: nn.Module, weights: str) -> tuple[str, str]:
    """Load a weights file into a network where one is named; return (origin, licence). Raises WeightsError."""
    if weights in ("default", "none"):
        return "random", "none"
    path = Path(weights)
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch, safetensors and the file system raise a dozen types, all meaning this file
        raise WeightsError(
            f"{path}: cannot be read as weights ({error}); wanted .safetensors or a state dict"
        ) from error
    expected = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    if len(fitting) < len(expected) - 2:  # all but the head's weight and bias
        raise WeightsError(
            f"{path}: only {len(fitting)} of {len(expected)} tensors fit this backbone; name the right one"
        )
    network.load_state_dict(fitting, strict=False)
    return f"file {path.name}", "unknown"


def interpolation(name: str) -> Literal["bicubic", "bilinear"]:
    """Return the interpolation of a PreprocessSpec that comes nearest to a library's own name for its."""
    return "bicubic" if name == "bicubic" else "bilinear"
