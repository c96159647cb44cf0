"""What `trainer summary` says of a network, against figures that come from elsewhere."""

import json

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from trainer.backbones import build, infos
from trainer.cli import app
from trainer.receptive_field import UNKNOWN, Field, joined
from trainer.summary import layers, summarize


def test_windows_follow_the_recurrences() -> None:
    """By hand: two 3 x 3 convolutions see 5 px; after a stride of 2 a third one sees 9, dilated by 2 it sees 13."""
    twice = Field().window(kernel=(3, 3), padding=(1, 1)).window(kernel=(3, 3), padding=(1, 1))
    assert str(twice) == "5 × 5"
    halved = twice.window(kernel=(1, 1), stride=(2, 2))
    assert str(halved.window(kernel=(3, 3))) == "9 × 9"
    assert str(halved.window(kernel=(3, 3), dilation=(2, 2))) == "13 × 13"
    assert str(Field().window(kernel=(1, 7))) == "1 × 7"


def test_paths_join_to_the_interval_that_holds_them() -> None:
    """Two windows that look to opposite sides see together what lies between them too."""
    left = Field().window(kernel=(1, 1), padding=(0, 3))
    right = Field().window(kernel=(1, 1), padding=(0, -3))
    assert str(joined([left, right])) == "1 × 7"
    assert str(joined([left, left.pooled()])) == "1 × 1 + whole"
    assert str(joined([left.pooled()])) == "whole picture"
    assert joined([left, UNKNOWN]) == UNKNOWN


def seen_px(features: nn.Module, *, side_px: int) -> tuple[int, int]:
    """Measure a receptive field: the extent of pixels whose change moves the middle of the last map.

    All weights are positive and maxima become means, so that no path is closed or cancels another.
    """
    for module in features.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    images = torch.ones(1, 3, side_px, side_px, dtype=torch.float64, requires_grad=True)
    output: Tensor = features.double().eval()(images)
    middle = output[0, 0, output.shape[2] // 2, output.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle, images)
    rows, columns = (gradient[0].abs().sum((0, axis)).nonzero()[:, 0] for axis in (2, 1))
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


@pytest.mark.parametrize(("name", "side_px", "expected_px"), [("vgg11", 224, 150), ("resnet18", 480, 435)])
def test_receptive_field_equals_what_gradients_measure(name: str, side_px: int, expected_px: int) -> None:
    """A chain and a residual network: recurrences, gradients and the published figure agree."""
    model = build(name, class_count=2, weights="none", image_size=side_px).model
    found = [layer.field for layer in layers(model, side_px=side_px) if layer.field.axes][-1]
    network = model.network
    features = network.features if name == "vgg11" else nn.Sequential(*list(network.children())[:-2])
    assert seen_px(features, side_px=side_px) == (expected_px, expected_px)
    assert str(found) == f"{expected_px} × {expected_px}"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_totals_equal_the_published_ones(name: str) -> None:
    """Parameters as torch counts them; multiply-accumulates as torchvision states them."""
    summary, (info,) = summarize(name), infos(name)
    assert summary.parameters == sum(
        p.numel() for p in build(name, class_count=1000, weights="none").model.parameters()
    )
    assert summary.macs / 1e9 == pytest.approx(info.gmacs, rel=0.02, abs=0.001)


def test_gates_let_the_whole_picture_in() -> None:
    """Squeeze and excitation is named beside the field of the convolutions; channels-last maps keep theirs."""
    gated = [layer.field for layer in summarize("mobilenet_v3_small").layers if layer.operation == "conv2d"]
    assert str(gated[0]) == "3 × 3"
    assert str(gated[-1]).endswith("+ whole")
    plain = [layer.field for layer in summarize("convnext_tiny", image_size=64).layers if layer.operation == "conv2d"]
    assert str(plain[-1]) == "1688 × 1688"


def test_command_prints_a_table_or_json() -> None:
    """The last line has the totals and the next command; JSON holds every layer."""
    runner = CliRunner()
    printed = runner.invoke(app, ["summary", "squeezenet1_1", "--image-size", "64"])
    assert "next: trainer fit DATA" in printed.stdout.splitlines()[-1]
    assert "receptive field, px" in printed.stdout
    document = json.loads(runner.invoke(app, ["summary", "squeezenet1_1", "--image-size", "64", "--json"]).stdout)
    assert document["layers"][0]["operation"] == "conv2d"
    assert document["layers"][0]["output_shape"] == [64, 31, 31]
