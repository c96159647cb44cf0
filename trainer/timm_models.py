"""Any timm model whose head is one linear layer, as `timm:NAME`; weights come from timm's hub or its cache."""

from typing import Final, cast

import timm
from huggingface_hub import try_to_load_from_cache
from timm.data.config import resolve_data_config
from torch import nn

from bundle.preprocess import PreprocessSpec
from trainer.classifier import Backbone, BackboneInfo, Classifier, interpolation, own_weights
from trainer.errors import ConfigError, WeightsError

PREFIX: Final = "timm:"


def make(name: str, *, weights: str) -> Backbone:
    """Return the network `timm:NAME` with its own head. Raises ConfigError for an unfit one, WeightsError."""
    model_name = name.removeprefix("timm:")
    try:
        network = timm.create_model(model_name, pretrained=weights == "default")
    except RuntimeError as error:
        raise ConfigError(f"{name}: timm does not know it ({error}); see `trainer backbones 'timm:*'`") from error
    except Exception as error:  # the hub client raises its own, requests' and OSError; all mean: no weights
        raise WeightsError(f"{name}: weights could not be fetched ({error}); use --weights none or a file") from error
    origin_config = cast("dict[str, object]", network.pretrained_cfg)
    config = resolve_data_config({}, pretrained_cfg=origin_config)  # type: ignore[no-untyped-call]
    head_name = origin_config.get("classifier")
    if not isinstance(head_name, str) or not isinstance(network.get_submodule(head_name), nn.Linear):
        raise ConfigError(f"{name}: its head is {head_name!r}, wanted one linear layer; choose another backbone")
    origin, licence = own_weights(network, weights)
    if weights == "default":
        origin = f"timm {origin_config.get('hf_hub_id') or origin_config.get('url')}"
        licence = str(origin_config.get("license") or "see timm")
    crop = int(config["input_size"][-1])
    spec = PreprocessSpec(
        resize_px=int(crop / config["crop_pct"]), crop_px=crop, interpolation=interpolation(config["interpolation"])
    )
    model = Classifier(network, head_name)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Backbone(model=model, spec=spec, mean=mean, std=std, weights=origin, licence=licence)


def infos(pattern: str) -> list[BackboneInfo]:
    """Return timm's pretrained models whose `timm:NAME` fits a shell pattern; timm tells no counts without building."""
    names = timm.list_models(pattern.removeprefix(PREFIX), pretrained=True)
    return [_info(name) for name in names]


def _info(name: str) -> BackboneInfo:
    config = timm.models.get_pretrained_cfg(name)
    return BackboneInfo(
        name=f"{PREFIX}{name}",
        parameters_m=None,
        gmacs=None,
        top1=None,
        input_px=config.input_size[-1] if config else None,
        offline=bool(config and config.hf_hub_id and _is_cached(config.hf_hub_id)),
    )


def _is_cached(repository: str) -> bool:
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
