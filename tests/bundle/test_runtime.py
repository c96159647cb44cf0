"""A session opens on exactly the graph and the provider that were asked for."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bundle.errors import BundleError, ProviderError
from bundle.repository import Bundle
from bundle.runtime import open_model
from tests.bundle.tiny_bundle import add_int8, forge, graph, make_bundle


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
    ("available", "wanted"),
    [(["CPUExecutionProvider"], "int8"), (["CUDAExecutionProvider", "CPUExecutionProvider"], "fp32")],
)
def test_auto_takes_int8_on_a_cpu_alone(
    tiny: Bundle, available: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
):
    """On CUDA it would take fp16, and fp32 where that is not there."""
    assert open_model(tiny, precision="auto").variant.precision == "fp32"
    both = add_int8(tiny)
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    session = ort.InferenceSession

    def cpu_alone(*args, **options):
        return session(*args, **{**options, "providers": ["CPUExecutionProvider"]})

    monkeypatch.setattr(ort, "InferenceSession", cpu_alone)
    assert open_model(both, precision="auto", provider="auto").variant.precision == wanted


def test_a_model_without_its_contract_is_refused(tiny: Bundle):
    """A plain ONNX file says nothing about labels."""
    with pytest.raises(BundleError, match="no 'calotype' metadata"):
        open_model(forge(tiny, graph(tiny.manifest.contract, embedded="")))


def test_a_model_with_another_text_for_a_contract_is_refused(tiny: Bundle):
    """Metadata that is not a contract is named as such."""
    with pytest.raises(BundleError, match="metadata in the model file"):
        open_model(forge(tiny, graph(tiny.manifest.contract, embedded="{}")))


def test_bytes_that_are_no_onnx_are_refused(tiny: Bundle):
    """onnxruntime's own exceptions do not leak."""
    with pytest.raises(BundleError, match="onnxruntime cannot open it"):
        open_model(forge(tiny, b"not a graph"))
