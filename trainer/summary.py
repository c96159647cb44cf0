"""What a network consists of, measured on the graph that torch.export makes of it, operation by operation."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx

from trainer.backbones import build
from trainer.classifier import Classifier
from trainer.receptive_field import UNKNOWN, Field, joined

_WINDOWS: Final = ("conv2d", "max_pool2d", "avg_pool2d")
_POOLINGS: Final = ("adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax", "group_norm")
_POINTWISE: Final = ("linear", "permute", "transpose")  # of maps that have their channels last
_RESHAPINGS: Final = ("flatten", "view", "reshape")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One operation that has parameters or looks around."""

    name: str  # of the module that it stands in
    operation: str
    output_shape: tuple[int, ...]  # without the batch
    parameters: int
    macs: int  # multiply-accumulates for one picture, of convolutions and linear layers
    field: Field


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A backbone's layers in the order in which they run."""

    name: str
    input_px: int
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Return the number of parameters, each counted once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates for one picture."""
        return sum(layer.macs for layer in self.layers)


def summarize(name: str, *, image_size: int | None = None, class_count: int = 1000) -> Summary:
    """Build a backbone with random weights and measure it; raises ConfigError for an unknown name."""
    backbone = build(name, class_count=class_count, weights="none", image_size=image_size)
    side = backbone.spec.crop_px
    return Summary(name=name, input_px=side, layers=layers(backbone.model, side_px=side))


def layers(model: Classifier, *, side_px: int) -> tuple[Layer, ...]:
    """Return the layers of a network for a picture of side_px."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.export.export(model.eval(), (torch.zeros(1, 3, side_px, side_px),))
    parameters = program.graph_signature.inputs_to_parameters
    counted: set[str] = set()
    fields: dict[fx.Node, Field] = {}
    found = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            fields[node] = Field()
        sources = [fields[source] for source in node.all_input_nodes if source in fields]
        if node.op != "call_function" or not sources:
            continue
        fields[node] = _field(node, sources)
        own = {parameters[source.name]: source for source in node.all_input_nodes if source.name in parameters}
        new = {fqn: source for fqn, source in own.items() if fqn not in counted}
        counted |= new.keys()
        if own or _operation(node) in (*_WINDOWS, *_POOLINGS):
            found.append(
                Layer(
                    name=_module_name(node),
                    operation=_operation(node),
                    output_shape=_shape(node)[1:],
                    parameters=sum(_value(source).numel() for source in new.values()),
                    macs=_macs(node),
                    field=fields[node],
                )
            )
    return tuple(found)


def _field(node: fx.Node, sources: list[Field]) -> Field:
    operation, before = _operation(node), joined(sources)
    shape, source_shape = _shape(node), _shape(node.all_input_nodes[0])
    if operation in _WINDOWS:
        return before.window(**_window(node, operation))
    if operation == "pad":
        left, _, top = (*_argument(node, 1), 0, 0)[:3]
        return before.window(kernel=(1, 1), padding=(top, left))
    if max(source_shape[2:], default=1) == 1:  # one place, or none: nothing left to gather
        return before
    if operation == "group_norm" or (operation in _POOLINGS and shape[2:] != source_shape[2:]):
        return before.pooled()
    if operation in _RESHAPINGS and len(shape) < len(source_shape) == 4:
        return before.pooled()
    keeps_places = operation in _POINTWISE or 4 not in (len(shape), len(source_shape)) or shape[2:] == source_shape[2:]
    return before if keeps_places or len(shape) != len(source_shape) else UNKNOWN


def _window(node: fx.Node, operation: str) -> dict[str, tuple[int, int]]:
    if operation == "conv2d":
        kernel = _shape(node.all_input_nodes[1])[2:]
        stride, padding, dilation = (_pair(node, place, default) for place, default in ((3, 1), (4, 0), (5, 1)))
        return {"kernel": (kernel[0], kernel[1]), "stride": stride, "padding": padding, "dilation": dilation}
    kernel_pair = _pair(node, 1, 1)
    stride = _pair(node, 2, 0)
    return {
        "kernel": kernel_pair,
        "stride": stride if any(stride) else kernel_pair,
        "padding": _pair(node, 3, 0),
        "dilation": _pair(node, 4, 1) if operation == "max_pool2d" else (1, 1),
    }


def _macs(node: fx.Node) -> int:
    if _operation(node) not in ("conv2d", "linear"):
        return 0
    weight = _shape(node.all_input_nodes[1])
    return _value(node).numel() * torch.Size(weight[1:]).numel()


def _pair(node: fx.Node, place: int, default: int) -> tuple[int, int]:
    values = _argument(node, place, default)
    return (values[0], values[-1]) if values else (default, default)


def _argument(node: fx.Node, place: int, default: int = 0) -> Sequence[int]:
    value = node.args[place] if len(node.args) > place else default
    if isinstance(value, int):
        return (value,)
    assert isinstance(value, list | tuple), f"{node}: argument {place} is {value!r}"
    return [item for item in value if isinstance(item, int)]


def _operation(node: fx.Node) -> str:
    name: str | Callable[..., object] = node.target
    return str(name).removeprefix("aten.").split(".")[0]


def _module_name(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("network").removeprefix(".") if stack else ""


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _value(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value
