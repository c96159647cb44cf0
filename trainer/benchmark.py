"""How fast a bundle's model files are on this machine: the ONNX variants and the TorchScript twin, side by side.

Same pictures (the golden ones), same number of threads. The combinations take turns, round after round, and the median
counts: what else the machine does then falls on all alike. Only the graph is measured, from uint8 pixels to logits,
neither decoding nor a network; `serving bench` measures a server.
"""

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from bundle.preprocess import load_input
from bundle.repository import Bundle, load_bundle
from bundle.runtime import open_model
from trainer.errors import ConfigError
from trainer.twins import Forward, open_twin

ROUNDS: Final = 5
MAX_BATCH: Final = 1024
MAX_THREADS: Final = 256

Images = NDArray[np.uint8]  # (N, H, W, 3)
Run = Callable[[Images], object]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One runtime at one batch size and number of threads."""

    runtime: str
    batch: int
    threads: int
    median_ms: float  # a batch
    p90_ms: float
    pictures_per_s: float  # at the median
    calls: int


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All timings of a bundle, and what they were taken on."""

    bundle: str
    processor: str
    cores: int  # that this process may use
    torch: str
    timings: tuple[Timing, ...]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    runtime: str
    threads: int
    batch: int
    run: Run


def measure(folder: Path, *, batches: tuple[int, ...], threads: tuple[int, ...], seconds: float) -> Benchmark:
    """Measure every model file of a bundle for `seconds` at each batch size and number of threads.

    Raises BundleError, and ConfigError for sizes that make no sense.
    """
    _check("batch", batches, most=MAX_BATCH)
    _check("threads", threads, most=MAX_THREADS)
    bundle = load_bundle(folder)
    contract = bundle.manifest.contract
    pictures = [load_input(data, contract.preprocess) for data in bundle.golden_pictures()]
    images = {size: np.stack([pictures[place % len(pictures)] for place in range(size)]) for size in batches}
    with _torch_threads_restored():
        timings = _take_turns(list(_candidates(bundle, batches, threads=threads)), images, seconds=seconds)
    return Benchmark(
        bundle=f"{contract.name}/{contract.version}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
        timings=tuple(timings),
    )


def _candidates(bundle: Bundle, batches: tuple[int, ...], *, threads: tuple[int, ...]) -> Iterator[_Candidate]:
    """Yield what is measured, rows that a person compares beside each other."""
    twins = [twin for twin in bundle.manifest.twins if twin.runtime == "torchscript"]
    modules = {twin.runtime: open_twin(bundle, twin) for twin in twins}
    for count in threads:
        runs: dict[str, Run] = {}
        for variant in bundle.manifest.variants:
            if variant.precision == "fp16":
                continue  # for GPUs: a CPU computes it in float32, with casts
            model = open_model(bundle, precision=variant.precision, intra_op_threads=count)
            runs[f"onnxruntime {variant.precision}"] = model.run
        runs |= {runtime: _torch_run(module, threads=count) for runtime, module in modules.items()}
        for size, (runtime, run) in itertools.product(batches, runs.items()):
            yield _Candidate(runtime=runtime, threads=count, batch=size, run=run)


def _take_turns(candidates: list[_Candidate], images: dict[int, Images], *, seconds: float) -> list[Timing]:
    """Measure in rounds, every second one backwards, so that none always follows the same neighbour."""
    taken: list[list[float]] = [[] for _ in candidates]
    for candidate in candidates:  # the first calls allocate and specialise
        candidate.run(images[candidate.batch])
        candidate.run(images[candidate.batch])
    for turn in range(ROUNDS):
        order = range(len(candidates)) if turn % 2 == 0 else reversed(range(len(candidates)))
        for place in order:
            candidate = candidates[place]
            taken[place] += _latencies_s(candidate.run, images[candidate.batch], seconds=seconds / ROUNDS)
    return [_timing(candidate, latencies) for candidate, latencies in zip(candidates, taken, strict=True)]


def _latencies_s(run: Run, images: Images, *, seconds: float) -> list[float]:
    """Call for so many seconds, at least once, after one call that does not count: another one's data fills caches."""
    run(images)
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while not latencies or time.perf_counter() < end:
        start = time.perf_counter()
        run(images)
        latencies.append(time.perf_counter() - start)
    return latencies


def _timing(candidate: _Candidate, latencies_s: list[float]) -> Timing:
    median_s = statistics.median(latencies_s)
    return Timing(
        runtime=candidate.runtime,
        batch=candidate.batch,
        threads=candidate.threads,
        median_ms=median_s * 1e3,
        p90_ms=float(np.percentile(latencies_s, 90)) * 1e3,
        pictures_per_s=candidate.batch / median_s,
        calls=len(latencies_s),
    )


def _torch_run(module: Forward, *, threads: int) -> Run:
    def run(images: Images) -> object:
        if torch.get_num_threads() != threads:  # one number for the whole process: set by whose turn it is
            torch.set_num_threads(threads)
        with torch.inference_mode():
            return module(torch.from_numpy(images))

    return run


@contextmanager
def _torch_threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(name: str, values: tuple[int, ...], *, most: int) -> None:
    if not values or len(set(values)) < len(values) or not all(1 <= value <= most for value in values):
        raise ConfigError(f"--{name}: found {values}, wanted different numbers from 1 to {most}, such as 1,2")


def _processor() -> str:
    """Return the processor's own name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
