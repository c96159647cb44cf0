"""The mission's own tests: torch, its exports and ONNX Runtime give the same answers, or nothing is written."""

import copy
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer
from bundle.contract import Contract
from bundle.errors import BundleError
from bundle.preprocess import PreprocessSpec
from bundle.repository import Bundle, load_bundle
from bundle.runtime import open_model
from trainer import runs, train
from trainer.config import FitConfig
from trainer.data import load_labelled
from trainer.errors import ParityError
from trainer.export import export
from trainer.network import Deployed
from trainer.onnx_graph import write_onnx
from trainer.proof import prove
from trainer.similarity import Recognising
from trainer.twins import write_exported_program, write_torchscript

from .bundles import LABELS, make_bundle, tiny_contract, tiny_network
from .pictures import make_folder

SPEC = PreprocessSpec(resize_px=73, crop_px=64, interpolation="bilinear")


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
    return load_bundle(export(run, tmp_path_factory.mktemp("models"), "colours", with_int8=False).folder)


def test_export_writes_a_bundle_that_opens(exported: Bundle) -> None:
    """All files are there, golden answers stand in the manifest, and the batch is dynamic."""
    manifest = exported.manifest
    assert manifest.contract.labels == LABELS
    variant = manifest.variants[0]
    assert len(manifest.golden) == len(variant.golden_logits) == len(variant.golden_similarity) == 6
    assert {picture.label for picture in manifest.golden} == set(LABELS)
    assert manifest.metrics["top-1"].low <= manifest.metrics["top-1"].value
    model = open_model(exported)
    for batch in (1, 2, 7, 64):
        output = model.run(np.zeros((batch, 64, 64, 3), np.uint8))
        assert (output.logits.shape, output.similarity.shape) == ((batch, 3), (batch,))


def test_no_file_of_a_bundle_names_a_place_of_this_machine(exported: Bundle, run: Path) -> None:
    """Neither the source tree nor its libraries, nor the folder of the run; in archives' members neither."""
    source = Path(trainer.__file__).parents[1]
    places = [str(place).encode() for place in (source, Path(torch.__file__).parents[1], run.parent)]
    files = {str(path): path.read_bytes() for path in exported.folder.rglob("*") if path.is_file()}
    for path in [path for path in files if path.endswith((".pt", ".pt2"))]:
        with zipfile.ZipFile(path) as archive:
            files |= {f"{path}/{name}": archive.read(name) for name in archive.namelist()}
    assert any(".torchscript.pt/" in name and "/code/" in name and name.endswith(".py") for name in files)
    assert [name for name, data in files.items() if any(place in data for place in places)] == []


def test_versions_ascend(run: Path, tmp_path: Path) -> None:
    """The next export is the next version."""
    versions = [export(run, tmp_path, "m", with_torchscript=False, with_int8=False).folder.name for _ in range(2)]
    assert versions == ["1", "2"]


def skewed(tmp_path: Path, **changes: object) -> tuple[Bundle, Recognising]:
    """Return a bundle whose ONNX was made from a skewed network, bank or contract, and the honest network."""
    honest, contract = tiny_network(), tiny_contract(SPEC)
    mean = changes.pop("graph_mean", contract.mean)
    bank = changes.pop("bank", honest.bank.T)
    written = replace(contract, **changes)
    other = Recognising(Deployed(honest.model.classifier, mean, contract.std), bank).eval()
    write_onnx(other, written, tmp_path / "model.onnx")
    return make_bundle(tmp_path, written), honest


def test_honest_bundle_passes_the_proof(data: Path, tmp_path: Path) -> None:
    """The skews below are refused for their skew alone."""
    bundle, honest = skewed(tmp_path)
    prove(bundle, honest, load_labelled(data, LABELS, max_bad=0), labels=LABELS, spec=SPEC)


@pytest.mark.parametrize(
    "changes",
    [
        {"graph_mean": (0.5, 0.456, 0.406)},
        {"bank": torch.eye(8)},
        {"labels": ("green", "blue", "red")},
        {"preprocess": PreprocessSpec(resize_px=80, crop_px=64, interpolation="bilinear")},
    ],
    ids=["one changed mean", "another bank", "one swapped label", "one other resize"],
)
def test_skewed_bundle_is_refused_at_export(data: Path, tmp_path: Path, changes: dict) -> None:
    """A graph, labels or a preprocessing that differs from what was trained does not pass."""
    bundle, honest = skewed(tmp_path, **changes)
    with pytest.raises(ParityError, match="disagrees with torch"):
        prove(bundle, honest, load_labelled(data, LABELS, max_bad=0), labels=LABELS, spec=SPEC)


def test_flipped_byte_is_refused_at_export(data: Path, tmp_path: Path) -> None:
    """In the ONNX file and in its twins alike."""
    bundle, honest = skewed(tmp_path)
    contract = bundle.manifest.contract
    twins = (
        write_torchscript(honest, contract, tmp_path / "model.torchscript.pt"),
        write_exported_program(honest, contract, tmp_path / "model.pt2"),
    )
    bundle = make_bundle(tmp_path, contract, *twins)
    files = load_labelled(data, LABELS, max_bad=0)
    for name in ("model.onnx", "model.torchscript.pt", "model.pt2"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
        with pytest.raises(BundleError, match=f"{name}: sha256 is"):
            prove(bundle, honest, files, labels=LABELS, spec=SPEC)
        (tmp_path / name).write_bytes(whole)
    parity = prove(bundle, honest, files, labels=LABELS, spec=SPEC)
    assert [item.runtime for item in parity] == ["onnxruntime fp32", "torchscript", "torch.export"]
    assert all(item.equal_top1 == item.picture_count == len(files) for item in parity)


@pytest.mark.parametrize("write", [write_torchscript, write_exported_program])
def test_skewed_twin_is_refused_at_export(write: Callable, data: Path, tmp_path: Path) -> None:
    """A twin of other weights or of another contract does not pass, whatever its manifest says."""
    bundle, honest = skewed(tmp_path)
    contract, files = bundle.manifest.contract, load_labelled(data, LABELS, max_bad=0)
    other = copy.deepcopy(honest)
    torch.nn.init.normal_(other.model.classifier.head.weight)
    forgetful = Recognising(honest.model, torch.eye(8)).eval()
    for network in (other, forgetful):
        skew = make_bundle(tmp_path, contract, write(network, contract, tmp_path / "model.twin"))
        with pytest.raises(ParityError, match="disagrees with torch"):
            prove(skew, honest, files, labels=LABELS, spec=SPEC)
    swapped = replace(contract, temperature=2.0)
    skew = make_bundle(tmp_path, contract, write(honest, swapped, tmp_path / "model.twin"))
    with pytest.raises(BundleError, match="disagree on temperature"):
        prove(skew, honest, files, labels=LABELS, spec=SPEC)


def test_twin_names_no_place_of_this_machine(tmp_path: Path) -> None:
    """torch.export notes a stack trace at every node; none leaves with the file."""
    _, honest = skewed(tmp_path)
    contract = tiny_contract(SPEC)
    write_exported_program(honest, contract, tmp_path / "model.pt2")
    data = (tmp_path / "model.pt2").read_bytes()  # stored, not compressed
    assert b"torch.ops.aten.convolution" in data or b"torch.ops.aten.conv2d" in data
    for place in (str(Path(trainer.__file__).parent), "site-packages", 'stack_trace": "File'):
        assert place.encode() not in data


def test_every_batch_size_is_proved_on_few_pictures(data: Path, tmp_path: Path) -> None:
    """A graph that fails at a batch of 64 alone does not pass, though there are fewer pictures than that."""
    bundle, honest = skewed(tmp_path)
    files = load_labelled(data, LABELS, max_bad=0)[:5]

    class FailsAt64(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, similarity = honest(images)
            return logits * (-1 if len(images) == 64 else 1), similarity

    with pytest.raises(ParityError, match="disagrees with torch on"):
        prove(bundle, FailsAt64(), files, labels=LABELS, spec=SPEC)


def test_failed_export_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the proof fails, the models folder is as it was."""

    def skew(model: Recognising, contract: Contract, path: Path) -> None:
        model.model.mean += 20
        write_onnx(model, contract, path)
        model.model.mean -= 20

    monkeypatch.setattr("trainer.export.write_onnx", skew)
    with torch.no_grad(), pytest.raises(ParityError):
        export(run, tmp_path / "models", "m")
    assert not (tmp_path / "models").exists()
