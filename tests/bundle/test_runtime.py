"""A session opens on exactly the graph and the provider that were asked for."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.external_data_helper import set_external_data

from bundle.errors import BundleError, ProviderError
from bundle.manifest import Precision
from bundle.repository import Bundle
from bundle.runtime import open_model, open_session
from tests.bundle.fake_cuda import FakeCuda
from tests.bundle.tiny_bundle import add_variant, forge, graph, make_bundle


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "models")


def test_logits_of_a_batch_are_those_of_its_pictures(tiny: Bundle):
    """Three brightnesses in one batch get the logits 16 * (m - 1/2) and similarities |2 m - 1| of each, in order."""
    model = open_model(tiny)
    batch = np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in (0, 51, 255)])
    logits, similarity = model.run(batch)
    assert logits.dtype == similarity.dtype == np.float32
    np.testing.assert_allclose(logits, [[4, -4], [2.4, -2.4], [-4, 4]], atol=1e-5)
    np.testing.assert_allclose(similarity, [1, 0.6, 1], atol=1e-6)


@pytest.mark.parametrize("provider", ["cpu", "auto"])
def test_the_provider_that_runs_is_reported(tiny: Bundle, provider: str, monkeypatch: pytest.MonkeyPatch):
    """`auto` takes the CPU where there is no CUDA."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert open_model(tiny, provider=provider).provider == "cpu"


def test_cuda_that_is_not_there_is_refused(tiny: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Asking for CUDA never runs silently on the CPU."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"asked for CUDA.*CPUExecutionProvider"):
        open_model(tiny, provider="cuda")


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        ({"crop_px": 5}, r"5, 5, 3.*wanted.*4, 4, 3"),
        ({"class_count": 3}, r"'N', 3\].*wanted.*'N', 2\]"),
        ({"output_name": "scores"}, "scores.*wanted.*logits"),
        ({"similarity_name": "likeness"}, "likeness.*wanted.*similarity"),
        ({"similarity_rank": 2}, r"'similarity', 'tensor\(float\)', \['N', 1\].*wanted.*\['N'\]"),
        ({"batch": 1}, r"\[1, 4, 4, 3\].*wanted.*'N', 4, 4, 3"),
    ],
)
def test_a_graph_of_another_shape_is_refused(tiny: Bundle, lie: dict, found: str):
    """Crop, number of labels, names and a fixed batch are read from the graph itself."""
    with pytest.raises(BundleError, match=found):
        open_model(forge(tiny, graph(tiny.manifest.contract, **lie)))


def test_a_precision_that_is_not_there_is_refused(tiny: Bundle):
    """The message lists the precisions to choose from."""
    with pytest.raises(BundleError, match="no int8 variant, found fp32"):
        open_model(tiny, precision="int8")


@pytest.mark.parametrize(
    ("available", "has_device", "there", "wanted"),
    [
        ("CPU", False, ("int8", "fp16"), "int8"),
        ("CPU", False, ("fp16",), "fp32"),
        ("CUDA CPU", True, ("int8", "fp16"), "fp16"),
        ("CUDA CPU", True, ("int8",), "fp32"),
        ("CUDA CPU", False, ("int8", "fp16"), "int8"),
        ("CUDA CPU", False, ("fp16",), "fp32"),
    ],
)
def test_auto_takes_what_suits_the_provider(
    tiny: Bundle,
    available: str,
    has_device: bool,
    there: tuple[Precision, ...],
    wanted: Precision,
    monkeypatch: pytest.MonkeyPatch,
):
    """int8 on a CPU alone, fp16 on CUDA alone; a CPU is also where onnxruntime has CUDA and finds no device."""
    for precision in there:
        tiny = add_variant(tiny, precision)
    providers = [f"{name}ExecutionProvider" for name in available.split()]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(ort, "InferenceSession", FakeCuda(ort.InferenceSession, has_device=has_device))
    model = open_model(tiny, precision="auto", provider="auto")
    assert (model.variant.precision, model.provider) == (wanted, "cuda" if has_device else "cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """An onnxruntime with CUDA, and a GPU."""
    fake = FakeCuda(ort.InferenceSession, has_device=True)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", fake)
    return fake


def test_a_gpu_is_used_with_a_bounded_arena_and_no_search_for_every_shape(tiny: Bundle, cuda: FakeCuda):
    """onnxruntime's own defaults take all of a GPU's memory, and seconds for every new batch size."""
    assert open_model(tiny, provider="cuda", cuda_memory_mb=300).provider == "cuda"
    (name, options), (fallback, _) = cuda.asked
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["gpu_mem_limit"] == str(300 * 2**20)
    assert (options["cudnn_conv_algo_search"], options["arena_extend_strategy"]) == ("HEURISTIC", "kSameAsRequested")


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_session_that_fell_back_is_refused(tiny: Bundle, cuda: FakeCuda, precision: str):
    """onnxruntime only warns where the driver or cuDNN is missing."""
    cuda._has_device = False
    with pytest.raises(ProviderError, match="fell back to the CPU"):
        open_model(tiny, provider="cuda", precision=precision)


def test_cuda_that_does_not_start_is_refused_or_done_without(tiny: Bundle, cuda: FakeCuda):
    """onnxruntime raises where its libraries are there and no device is."""
    cuda._has_driver = False
    with pytest.raises(ProviderError, match="CUDA would not start: CUDA failure 100"):
        open_model(tiny, provider="cuda")
    assert open_model(tiny, provider="auto").provider == "cpu"


def test_looking_for_the_libraries_of_cuda_prints_nothing(
    tiny: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Stdout is for results; a CPU does not look at all."""
    looks: list[int] = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: looks.append(sys.stdout.write("Failed to load libcublas\n")))
    open_model(tiny, provider="cpu")
    assert not looks
    open_model(tiny, provider="cuda")
    assert looks
    assert capsys.readouterr().out == ""


def test_a_model_without_its_contract_is_refused(tiny: Bundle):
    """A plain ONNX file says nothing about labels."""
    with pytest.raises(BundleError, match="no 'calotype' metadata"):
        open_model(forge(tiny, graph(tiny.manifest.contract, embedded="")))


def test_a_model_with_another_text_for_a_contract_is_refused(tiny: Bundle):
    """Metadata that is not a contract is named as such."""
    with pytest.raises(BundleError, match="metadata in the model file"):
        open_model(forge(tiny, graph(tiny.manifest.contract, embedded="{}")))


@pytest.mark.parametrize("spins", [False, True])
def test_threads_spin_only_where_it_is_asked_for(tiny: Bundle, spins: bool):
    """And never beyond a run."""
    data = tiny.read("model.onnx", tiny.manifest.variant("fp32").sha256)
    options = open_session(data, Path("model.onnx"), intra_op_threads=2, spins=spins).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spins))
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_the_file_is_not_kept_in_memory_beside_the_session(tiny: Bundle):
    """Two references: ours, and getrefcount's own."""
    data = tiny.read("model.onnx", tiny.manifest.variant("fp32").sha256)
    session = open_session(data, Path("model.onnx"), intra_op_threads=1)
    assert session.get_inputs()
    assert sys.getrefcount(data) == 2


def test_weights_beside_the_file_are_refused(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They stand in no manifest, and onnxruntime would look for them where the process happens to stand."""
    model = onnx.load_model_from_string(tiny.read("model.onnx", tiny.manifest.variant("fp32").sha256))
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    set_external_data(tensor, location="weights.bin")
    tensor.ClearField("raw_data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="cannot open it"):
        open_session(model.SerializeToString(), Path("model.onnx"), intra_op_threads=1)


def test_bytes_that_are_no_onnx_are_refused(tiny: Bundle):
    """onnxruntime's own exceptions do not leak."""
    with pytest.raises(BundleError, match="onnxruntime cannot open it"):
        open_model(forge(tiny, b"not a graph"))
