"""The mission's own tests: torch, TorchScript and ONNX Runtime give the same answers, or nothing is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.errors import BundleError
from bundle.manifest import Contract, Twin, Variant
from bundle.preprocess import PreprocessSpec
from bundle.repository import Bundle, file_sha256, load_bundle, write_manifest
from bundle.runtime import open_model
from trainer import backbones, runs, train
from trainer.config import FitConfig
from trainer.data import load_labelled
from trainer.errors import ParityError
from trainer.export import export
from trainer.network import Deployed
from trainer.onnx_graph import write_onnx
from trainer.proof import prove
from trainer.twins import write_torchscript

from .pictures import make_folder

LABELS = ("blue", "green", "red")
SPEC = PreprocessSpec(resize_px=73, crop_px=64, interpolation="bilinear")  # of ResNet-18 at 64 px
FAMILIES = {  # the smallest of every family, and a side that it can still take
    "efficientnet_lite0": 64,
    "alexnet": 64,
    "vgg11": 32,
    "resnet18": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "convnext_tiny": 64,
    "timm:resnet10t": 64,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), count=10)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = FitConfig(backbone="mobilenet_v3_small", weights="none", image_size=64, epochs=1, batch_size=8)
    train.fit(runs.begin(data, folder, config))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(export(run, tmp_path_factory.mktemp("models"), "colours").folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_alike_everywhere(name: str, data: Path, exported: Bundle, tmp_path: Path) -> None:
    """Random weights, real files: torch, TorchScript and ONNX Runtime agree at batches of 1, 2, 3, 8 and 16."""
    torch.manual_seed(0)
    backbone = backbones.build(name, class_count=3, weights="none", image_size=FAMILIES[name])
    torch.nn.init.normal_(backbone.model.head.weight, std=0.1)
    model = Deployed(backbone.model, backbone.mean, backbone.std).eval()
    contract = Contract(
        name="family", version=1, labels=LABELS, preprocess=backbone.spec, mean=backbone.mean, std=backbone.std
    )
    write_onnx(model, contract, tmp_path / "model.onnx")
    twin = write_torchscript(model, contract, tmp_path / "model.torchscript.pt")
    bundle = remake(exported, tmp_path, contract, twin)
    files = load_labelled(data, LABELS, max_bad=0)
    parity = prove(bundle, model, files, labels=LABELS, spec=backbone.spec)
    assert [item.runtime for item in parity] == ["onnxruntime fp32", "torchscript"]
    assert all(item.equal_top1 == item.picture_count == 30 for item in parity)
    assert all(item.max_difference <= 1e-4 for item in parity)


def remake(exported: Bundle, folder: Path, contract: Contract, *twins: Twin) -> Bundle:
    """Write a manifest for model files that stand in `folder`; enough for the proof."""
    variant: Variant = replace(exported.manifest.variants[0], sha256=file_sha256(folder / "model.onnx"))
    write_manifest(folder, replace(exported.manifest, contract=contract, variants=(variant,), twins=twins))
    return load_bundle(folder)


def test_export_writes_a_bundle_that_opens(exported: Bundle) -> None:
    """All files are there, golden answers stand in the manifest, and the batch is dynamic."""
    manifest = exported.manifest
    assert manifest.contract.labels == LABELS
    assert len(manifest.golden) == len(manifest.variants[0].golden_logits) == 3
    assert {picture.label for picture in manifest.golden} == set(LABELS)
    assert manifest.metrics["top-1"].low <= manifest.metrics["top-1"].value
    model = open_model(exported)
    for batch in (1, 2, 7, 64):
        assert model.run(np.zeros((batch, 64, 64, 3), np.uint8)).shape == (batch, 3)


def test_versions_ascend(run: Path, tmp_path: Path) -> None:
    """The next export is the next version."""
    assert [export(run, tmp_path, "m").folder.name for _ in range(2)] == ["1", "2"]


def skewed(exported: Bundle, tmp_path: Path, **changes: object) -> tuple[Bundle, Deployed]:
    """Return a bundle whose ONNX was made from a skewed network or contract, and the honest network."""
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", class_count=3, weights="none", image_size=64)
    torch.nn.init.normal_(backbone.model.head.weight, std=0.05)
    honest = Deployed(backbone.model, backbone.mean, backbone.std).eval()
    contract = Contract(
        name="m", version=1, labels=LABELS, preprocess=backbone.spec, mean=backbone.mean, std=backbone.std
    )
    mean = changes.pop("graph_mean", backbone.mean)
    written = replace(contract, **changes)
    write_onnx(Deployed(backbone.model, mean, backbone.std).eval(), written, tmp_path / "model.onnx")
    return remake(exported, tmp_path, written), honest


def test_honest_bundle_passes_the_proof(exported: Bundle, data: Path, tmp_path: Path) -> None:
    """The skews below are refused for their skew alone."""
    bundle, honest = skewed(exported, tmp_path)
    prove(bundle, honest, load_labelled(data, LABELS, max_bad=0), labels=LABELS, spec=SPEC)


@pytest.mark.parametrize(
    "changes",
    [
        {"graph_mean": (0.5, 0.456, 0.406)},
        {"labels": ("green", "blue", "red")},
        {"preprocess": PreprocessSpec(resize_px=80, crop_px=64, interpolation="bilinear")},
    ],
    ids=["one changed mean", "one swapped label", "one other resize"],
)
def test_skewed_bundle_is_refused_at_export(exported: Bundle, data: Path, tmp_path: Path, changes: dict) -> None:
    """A graph, labels or a preprocessing that differs from what was trained does not pass."""
    bundle, honest = skewed(exported, tmp_path, **changes)
    with pytest.raises(ParityError, match="disagrees with torch"):
        prove(bundle, honest, load_labelled(data, LABELS, max_bad=0), labels=LABELS, spec=SPEC)


def test_flipped_byte_is_refused_at_export(exported: Bundle, data: Path, tmp_path: Path) -> None:
    """In the ONNX file and in its twin alike."""
    bundle, honest = skewed(exported, tmp_path)
    twin = write_torchscript(honest, bundle.manifest.contract, tmp_path / "model.torchscript.pt")
    bundle = remake(exported, tmp_path, bundle.manifest.contract, twin)
    files = load_labelled(data, LABELS, max_bad=0)
    for name in ("model.onnx", "model.torchscript.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
        with pytest.raises(BundleError, match=f"{name}: sha256 is"):
            prove(bundle, honest, files, labels=LABELS, spec=SPEC)
        (tmp_path / name).write_bytes(whole)
    prove(bundle, honest, files, labels=LABELS, spec=SPEC)


def test_failed_export_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the proof fails, the models folder is as it was."""

    def skew(model: Deployed, contract: Contract, path: Path) -> None:
        model.mean += 20
        write_onnx(model, contract, path)
        model.mean -= 20

    monkeypatch.setattr("trainer.export.write_onnx", skew)
    with torch.no_grad(), pytest.raises(ParityError):
        export(run, tmp_path / "models", "m")
    assert not (tmp_path / "models").exists()
