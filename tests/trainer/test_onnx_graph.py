"""The ONNX file itself: clean, complete, and the same bytes for the same network."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bundle.contract import CONTRACT_KEY, contract_to_json
from bundle.preprocess import PreprocessSpec
from bundle.repository import file_sha256
from bundle.runtime import joined, open_model
from trainer import backbones
from trainer.errors import ExportError
from trainer.network import Deployed
from trainer.onnx_graph import MAX_WEIGHT_BYTES, write_onnx
from trainer.portable import write_portable
from trainer.twins import write_exported_program

from .bundles import make_bundle, tiny_contract, tiny_network, with_any_bank

ROOT = Path(__file__).parents[2]
SPEC = PreprocessSpec(resize_px=40, crop_px=32)
LEFTOVERS = {"Identity", "Dropout", "Constant", "Shape", "Range", "Gather", "Loop", "If", "BatchNormalization"}


def write_all(folder: Path) -> dict[str, str]:
    """Write one network in every format that `trainer export` writes but TorchScript; return the hashes."""
    network, contract = tiny_network(), tiny_contract(SPEC)
    write_onnx(network, contract, folder / "model.onnx")
    write_portable(contract, folder / "model.onnx", folder / "model.portable.onnx")
    write_exported_program(network, contract, folder / "model.pt2")
    return {path.name: file_sha256(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with all that exporters like to leave behind: adaptive pooling, dropout, batch normalisation.

    Its weights are channels_last, as training leaves them.
    """
    torch.manual_seed(0)
    backbone = backbones.build("mobilenet_v3_small", class_count=3, weights="none", image_size=32)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    model = with_any_bank(Deployed(backbone.model, backbone.mean, backbone.std))
    write_onnx(model.to(memory_format=torch.channels_last).eval(), tiny_contract(SPEC), path)
    return path


def test_graph_is_folded_to_its_arithmetic(mobilenet: Path) -> None:
    """No training operator, no shape chain, no node over constants alone; one layout change, one cast."""
    graph = onnx.load(mobilenet).graph
    counts = Counter(node.op_type for node in graph.node)
    assert not LEFTOVERS & set(counts)
    assert counts["Transpose"] == counts["Cast"] == 1
    constants = {tensor.name for tensor in graph.initializer}
    assert all(set(node.input) - constants for node in graph.node)
    assert {name for node in graph.node for name in node.input} >= constants


def test_file_holds_nothing_but_graph_and_contract(mobilenet: Path) -> None:
    """No stack trace, local path, class name or doc string; opset 18 of the standard operators alone, IR 10 at most."""
    model = onnx.load(mobilenet)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert [(item.key, item.value) for item in model.metadata_props] == [
        (CONTRACT_KEY, contract_to_json(tiny_contract(SPEC)))
    ]
    data = mobilenet.read_bytes()
    for trace in (b"stack_trace", b"site-packages", str(ROOT).encode(), b"pkg.torch", b"namespace", b".py"):
        assert trace not in data
    assert {path.suffix for path in mobilenet.parent.iterdir()} <= {".onnx", ".json"}  # no external data


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    """Written in this process and in another one with another hash seed: ONNX, portable graph and .pt2."""
    line = (
        "import sys, pathlib; from tests.trainer.test_onnx_graph import write_all; write_all(pathlib.Path(sys.argv[1]))"
    )
    there = tmp_path / "there"
    there.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "2"}
    subprocess.run([sys.executable, "-c", line, there], env=environment, check=True, timeout=120)
    here = tmp_path / "here"
    here.mkdir()
    assert write_all(here) == {path.name: file_sha256(path) for path in there.iterdir()}


def test_other_weights_give_other_bytes(tmp_path: Path) -> None:
    """Equal hashes mean something."""
    for seed in (0, 1):
        write_onnx(tiny_network(seed), tiny_contract(SPEC), tmp_path / f"{seed}.onnx")
    assert file_sha256(tmp_path / "0.onnx") != file_sha256(tmp_path / "1.onnx")


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_batch_is_dynamic(mobilenet: Path, batch: int) -> None:
    """Any number of pictures at once gives each the answer that it gets alone."""
    model = open_model(make_bundle(mobilenet.parent, tiny_contract(SPEC)))
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    alone = joined([model.run(images[number : number + 1]) for number in range(batch)])
    together = model.run(images)
    np.testing.assert_allclose(together.logits, alone.logits, atol=1e-5)
    np.testing.assert_allclose(together.similarity, alone.similarity, atol=1e-5)


def test_network_beyond_one_file_is_refused(tmp_path: Path) -> None:
    """Before anything is traced or written: protobuf ends at 2 GiB."""
    network = tiny_network()
    network.register_buffer("vast", torch.empty(MAX_WEIGHT_BYTES, dtype=torch.uint8, device="meta"))
    with pytest.raises(ExportError, match=r"weights are 2,1\d\d,\d\d\d,\d\d\d bytes, one ONNX file holds at most"):
        write_onnx(network, tiny_contract(SPEC), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
