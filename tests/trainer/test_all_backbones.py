"""Every family of networks exported and proved with random weights.

A few in every `make test`; all of them, one small member each, in `make test-all-backbones`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bundle.contract import Contract
from trainer import backbones, torchvision_models
from trainer.data import Picture, load_labelled
from trainer.half import FP16_FILE, rehearsal_deviation, write_half
from trainer.int8_trials import load_images
from trainer.network import Deployed
from trainer.onnx_graph import ONNX_FILE, write_onnx
from trainer.portable import PORTABLE_FILE, prove_portable, write_portable
from trainer.proof import prove
from trainer.similarity import with_bank
from trainer.twins import write_exported_program, write_torchscript

from .bundles import LABELS, make_bundle
from .pictures import make_folder

FAMILIES = {  # a small member of every family, and a side that it can still take
    "efficientnet_lite0": 64,
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "timm:convnextv2_atto": 64,
    "timm:fbnetc_100": 64,
    "timm:ghostnet_100": 64,
    "timm:mobilenetv4_conv_small": 64,
    "timm:repvgg_a0": 64,
    "timm:resnet10t": 64,
    "timm:rexnet_100": 64,
    "timm:tf_efficientnetv2_b0": 64,
}
REPRESENTATIVE = {"efficientnet_lite0", "shufflenet_v2_x0_5", "timm:resnet10t"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Picture, ...]:
    return load_labelled(make_folder(tmp_path_factory.mktemp("data"), count=10), LABELS, max_bad=0)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in REPRESENTATIVE else pytest.mark.all_backbones) for name in FAMILIES],
)
def test_family_answers_alike_everywhere(name: str, files: tuple[Picture, ...], tmp_path: Path) -> None:
    """Real files: ONNX Runtime, TorchScript, torch.export and the portable graph agree with torch at every batch.

    float16 can be written, and stays finite; random weights make near ties that its rule would refuse.
    """
    torch.manual_seed(0)
    backbone = backbones.build(name, class_count=3, weights="none", image_size=FAMILIES[name])
    torch.nn.init.normal_(backbone.model.head.weight, std=0.1)
    model = with_bank(Deployed(backbone.model, backbone.mean, backbone.std), files, backbone.spec)
    contract = Contract(
        name="family",
        version=1,
        labels=LABELS,
        preprocess=backbone.spec,
        mean=backbone.mean,
        std=backbone.std,
        unknown_below=0.5,
    )
    write_onnx(model, contract, tmp_path / ONNX_FILE)
    portable = write_portable(contract, tmp_path / ONNX_FILE, tmp_path / PORTABLE_FILE)
    twins = (
        write_torchscript(model, contract, tmp_path / "model.torchscript.pt"),
        write_exported_program(model, contract, tmp_path / "model.pt2"),
        portable,
    )
    bundle = make_bundle(tmp_path, contract, *twins)
    parity = [*prove(bundle, model, files, labels=LABELS, spec=backbone.spec), prove_portable(bundle, portable, files)]
    assert [item.runtime for item in parity] == ["onnxruntime fp32", "torchscript", "torch.export", "portable"]
    assert all(item.equal_top1 == item.picture_count == 30 for item in parity)
    assert all(item.max_difference <= 1e-4 for item in parity)
    write_half(tmp_path / ONNX_FILE, tmp_path / FP16_FILE, contract)
    for output in rehearsal_deviation(tmp_path / FP16_FILE, load_images(files[:3], contract)):
        assert np.isfinite(np.column_stack([output.logits, output.similarity])).all()


def test_no_family_of_torchvision_is_left_out() -> None:
    """A new torchvision brings new modules of networks; each has a member above."""

    def families(names: list[str]) -> set[str]:
        return {torchvision.models.get_model_builder(name).__module__ for name in names}

    offered = torchvision_models.names()
    assert families([name for name in FAMILIES if name in offered]) == families(offered)
