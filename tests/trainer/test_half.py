"""float16 for GPUs has to earn its place where there is no GPU: a rehearsal rounds as one would."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bundle.golden import open_proved
from bundle.repository import load_bundle
from bundle.runtime import open_model
from trainer import benchmark, runs, train
from trainer.config import FitConfig
from trainer.data import Picture, load_labelled
from trainer.errors import ConfigError, QuantizationError
from trainer.export import export
from trainer.half import add_half, rehearsal_deviation, write_half
from trainer.int8_trials import answer, load_images

from . import colour_graph
from .colour_graph import LABELS, NORMAL, SIDE, write_colour_graph
from .pictures import make_folder

CONTRACT = replace(colour_graph.CONTRACT, mean=(0.485,) * 3)


def graph(path: Path, *, gain: float = 1.0, shift: float = 0.0) -> Path:
    """Write uint8 NHWC -> normalise to about -1..1 -> times gain, plus shift -> back again -> mean -> colour logits."""
    eye = np.eye(3, dtype=np.float32)[:, :, np.newaxis, np.newaxis]
    constants = {
        "up": np.float32(gain) * eye,
        "shift": np.full(3, shift, np.float32),
        "down": eye / np.float32(gain),
        "unshift": np.full(3, -shift / gain, np.float32),
    }
    layers = [
        helper.make_node("Conv", [NORMAL, "up", "shift"], ["large"], "conv0"),
        helper.make_node("Conv", ["large", "down", "unshift"], ["small"], "conv1"),
    ]
    return write_colour_graph(path, CONTRACT, layers, constants, mean=123.675)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Picture, ...]:
    return load_labelled(make_folder(tmp_path_factory.mktemp("data"), count=8), LABELS, max_bad=0)


def test_half_file_is_a_whole_variant(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    """Same ends, contract and opset; weights in float16, normalisation in float32; as right as fp32."""
    source, target = graph(tmp_path / "fp32.onnx"), tmp_path / "fp16.onnx"
    reason = add_half(source, target, contract=CONTRACT, pictures=pictures)
    assert reason.startswith("fp16 added, for GPUs")
    assert reason.endswith("100.0% of its rehearsal's answers as fp32's")
    half, whole = onnx.load(target), onnx.load(source)
    assert [(one.domain, one.version) for one in half.opset_import] == [("", 18)]
    assert half.ir_version <= 10
    assert half.metadata_props == whole.metadata_props
    assert (half.graph.input, half.graph.output) == (whole.graph.input, whole.graph.output)
    single = {tensor.name for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert single == {"mean", "scale", "bank"}
    images = load_images(pictures, CONTRACT)
    np.testing.assert_allclose(answer(target, images).logits, answer(source, images).logits, atol=0.02)


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    """A bundle can be made again."""
    source = graph(tmp_path / "fp32.onnx")
    for name in ("a", "b"):
        write_half(source, tmp_path / name, CONTRACT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("largest", [65_536.0, float("inf")])
def test_weights_beyond_float16_are_refused(tmp_path: Path, largest: float, pictures: tuple[Picture, ...]) -> None:
    """The converter would clamp them to 65504 without a word."""
    source, target = graph(tmp_path / "fp32.onnx", shift=largest), tmp_path / "fp16.onnx"
    with pytest.raises(QuantizationError, match="weights of 'shift' go beyond 65504"):
        write_half(source, target, CONTRACT)
    assert "weights of 'shift'" in add_half(source, target, contract=CONTRACT, pictures=pictures)
    assert not target.exists()


def test_values_that_overflow_between_layers_are_refused(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    """On the CPU the same file answers well: onnxruntime computes there in float32."""
    source, target = graph(tmp_path / "fp32.onnx", gain=30_000, shift=50_000), tmp_path / "fp16.onnx"
    write_half(source, target, CONTRACT)
    images = load_images(pictures, CONTRACT)
    np.testing.assert_array_equal(answer(target, images).logits.argmax(1), answer(source, images).logits.argmax(1))
    reason = add_half(source, target, contract=CONTRACT, pictures=pictures)
    assert reason == "fp16 left out: its rehearsal on 24 pictures: probabilities that are no numbers"
    assert not target.exists()


def test_values_that_drown_between_layers_are_refused(tmp_path: Path, pictures: tuple[Picture, ...]) -> None:
    """From 32768 on float16 counts in steps of 32: a colour of -1..1 on top is gone."""
    source, target = graph(tmp_path / "fp32.onnx", shift=40_000), tmp_path / "fp16.onnx"
    reason = add_half(source, target, contract=CONTRACT, pictures=pictures)
    assert reason.startswith("fp16 left out: its rehearsal on 24 pictures: loses")
    assert not target.exists()


def test_rehearsal_rounds_between_layers(tmp_path: Path) -> None:
    """2048 + (255 - 123.675) / 127.5 = 2049.03 is 2050 in float16, two from 2048; times the head's 20 that is 40."""
    source, target = graph(tmp_path / "fp32.onnx", shift=2048), tmp_path / "fp16.onnx"
    write_half(source, target, CONTRACT)
    white = np.full((1, SIDE, SIDE, 3), 255, np.uint8)
    single, rounded = rehearsal_deviation(target, white)
    np.testing.assert_allclose(single.logits, 20 * (255 - 123.675) / 127.5, rtol=1e-3)
    np.testing.assert_array_equal(rounded.logits, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = make_folder(tmp_path_factory.mktemp("data"), count=10)
    train.fit(runs.begin(data, folder, FitConfig(backbone="resnet18", weights="none", image_size=32, epochs=0)))
    return folder


def test_export_adds_half_to_the_bundle(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A proved, smaller variant with tolerances of its own, without latency; by name it answers on a CPU too."""
    exported = export(run, tmp_path, "m", with_torchscript=False, with_int8=False, with_fp16=True)
    assert exported.fp16.startswith("fp16 added")
    assert not capsys.readouterr().out  # the converter's library prints where it fails to infer shapes
    assert [item.runtime for item in exported.parity] == ["onnxruntime fp32", "onnxruntime fp16"]
    bundle = load_bundle(exported.folder)
    fp32, fp16 = bundle.manifest.variants
    assert (fp16.precision, fp16.file, fp16.latency_ms) == ("fp16", "model.fp16.onnx", None)
    assert fp16.tolerance >= 0.02 > fp32.tolerance
    assert fp16.accuracy
    size, whole_size = ((exported.folder / variant.file).stat().st_size for variant in (fp16, fp32))
    assert size < 0.6 * whole_size
    assert open_proved(bundle, precision="fp16").model.variant == fp16
    assert open_model(bundle, precision="auto").variant == fp32
    timings = benchmark.measure(exported.folder, batches=(1,), threads=(1,), seconds=0.001).timings
    assert [timing.runtime for timing in timings] == ["onnxruntime fp32"]


def test_export_goes_on_without_half(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 is written alone, with the reason."""
    monkeypatch.setattr("trainer.half.LARGEST", 0.01)
    exported = export(run, tmp_path, "m", with_torchscript=False, with_int8=False, with_fp16=True)
    assert exported.fp16.startswith("fp16 left out: weights of")
    assert [variant.precision for variant in load_bundle(exported.folder).manifest.variants] == ["fp32"]
    assert not (exported.folder / "model.fp16.onnx").exists()


def test_half_without_onnx_is_refused(run: Path, tmp_path: Path) -> None:
    """It is made from ONNX."""
    with pytest.raises(ConfigError, match="--fp16 is made from ONNX"):
        export(run, tmp_path / "models", "m", with_onnx=False, with_fp16=True)
