"""Batches with memory of their own answer as any other run does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bundle.bound import BoundBatch
from bundle.runtime import OnnxModel, open_model
from tests.bundle.fake_cuda import FakeCuda
from tests.bundle.tiny_bundle import make_bundle


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    return open_model(make_bundle(tmp_path / "models"))


def batch(*values: int) -> np.ndarray:
    """Return even pictures of these brightnesses, uint8 (N, 4, 4, 3)."""
    return np.stack([np.full((4, 4, 3), value, dtype=np.uint8) for value in values])


def test_every_run_answers_for_its_own_pictures(model: OnnxModel):
    """The memory is the same, what was in it before is not."""
    bound = BoundBatch(model._session, 2, crop_px=4, device="cpu")
    for values in ((0, 51), (255, 51), (0, 0)):
        outputs = bound.run(batch(*values))
        assert outputs is not None
        for output, expected in zip(outputs, model.run(batch(*values)), strict=True):
            np.testing.assert_array_equal(output, expected)


def test_what_has_been_answered_stays_as_it_was(model: OnnxModel):
    """The next run may write its answers where these came from."""
    bound = BoundBatch(model._session, 1, crop_px=4, device="cpu")
    first = bound.run(batch(0))
    assert first is not None
    kept = [output.copy() for output in first]
    bound.run(batch(255))
    for output, expected in zip(first, kept, strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize(
    "images",
    [batch(1), np.zeros((2, 8, 8, 3), dtype=np.uint8), np.zeros((2, 4, 4, 3), dtype=np.float32)],
    ids=["another batch size", "another side", "another type"],
)
def test_nothing_is_copied_that_does_not_fit(model: OnnxModel, images: np.ndarray):
    assert BoundBatch(model._session, 2, crop_px=4, device="cpu").run(images) is None


@contextmanager
def occupied(bound: BoundBatch) -> Iterator[None]:
    """A thread that stays in the middle of a run."""
    entered, leave = threading.Event(), threading.Event()
    session = bound._session

    class Slow:
        def run_with_iobinding(self, binding: ort.IOBinding) -> None:
            entered.set()
            leave.wait(10)
            session.run_with_iobinding(binding)

    bound._session = Slow()
    thread = threading.Thread(target=bound.run, args=(batch(0),))
    thread.start()
    assert entered.wait(10)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def test_a_second_thread_does_not_overwrite_what_the_first_runs(model: OnnxModel):
    bound = BoundBatch(model._session, 1, crop_px=4, device="cpu")
    model._bound = {1: bound}
    with occupied(bound):
        assert bound.run(batch(255)) is None
        np.testing.assert_allclose(model.run(batch(255)).logits, [[-4, 4]], atol=1e-5)  # without it
    assert bound.run(batch(255)) is not None


def counted(calls: list[str], name: str, call: Callable[..., object]) -> Callable[..., object]:
    """Return a function that does what `call` does, and notes its name."""

    def noted(*args: object) -> object:
        calls.append(name)
        return call(*args)

    return noted


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_only_a_gpu_reserves_memory_for_each_batch_size(tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch):
    """Where there is one: here its memory is the CPU's."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", FakeCuda(ort.InferenceSession, has_device=True))
    reserved: list[tuple[tuple[int, ...], str]] = []
    make = ort.OrtValue.ortvalue_from_shape_and_type

    def on_cpu(shape: tuple[int, ...], dtype: type, device: str, number: int) -> ort.OrtValue:
        reserved.append((shape, device))
        return make(shape, dtype, "cpu", number)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", on_cpu)
    model = open_model(make_bundle(tmp_path / "models"), provider=provider)
    runs: list[str] = []
    for way in ("run", "run_with_iobinding"):
        monkeypatch.setattr(model._session, way, counted(runs, way, getattr(model._session, way)))
    model.reserve((1, 2, 4))
    assert runs == [{"cpu": "run", "cuda": "run_with_iobinding"}[provider]] * 3
    assert reserved == ([((size, 4, 4, 3), "cuda") for size in (1, 2, 4)] if provider == "cuda" else [])
    np.testing.assert_allclose(model.run(batch(0, 255)).logits, [[4, -4], [-4, 4]], atol=1e-5)
    assert model.run(batch(0, 51, 255)).logits.shape == (3, 2)
