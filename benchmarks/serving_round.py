"""One round of `serving_targets`: plain practice, the ceiling and a server take turns on the same cores and pictures.

What is held against each other is measured in turns of a few seconds, one right after the other, and the means over the
turns are compared: a shared machine's speed drifts by a tenth within a minute. The ceiling's plan is chosen first and
measured anew beside the server: the better of two figures that scatter would be too good by their scatter. In the same
turns is a server that has nothing but the library, see `least_server`.

What is measured has a name; "seen …" is told beside the targets and held against none. Knows no target.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from benchmarks.server_process import ServerProcess, load, running_module, running_server
from bundle.preprocess import load_input
from bundle.repository import load_bundle
from serving.client import Client

CORES: Final = len(os.sched_getaffinity(0))
TURNS: Final = 2
DEADLINE_S: Final = 0.3
CAMERA_PX: Final = (4000, 3000)
CAMERA_PICTURES: Final = 40

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one server showed, and what was measured in turns with it, by name: the means of each figure."""

    means: dict[str, Figures]
    best: list[int]  # index of the best label, picture by picture
    plain_best: list[int]  # the same of plain practice
    first_answer_s: float
    resident_mb: float  # after twice capacity

    def rate(self, name: str) -> float:
        """Return the mean pictures/s of what has that name."""
        return self.means[name]["pictures_per_s"]


def one_round(
    model: Path, paths: Sequence[Path], *, variants: Sequence[str], seconds: float
) -> Iterator[tuple[str, float]]:
    """Yield what is measured of a bundle models/NAME/VERSION with these JPEGs, each turn for so many seconds."""
    for variant in variants:
        served = _serve(model, paths, variant=variant, seconds=seconds)
        means = served.means
        many, ceiling = means["many"], means["ceiling"]
        bare_ms, wide_ms, own_ms = (means[name]["p50_ms"] for name in ("bare", "wide", "one"))
        equal = sum(here == there for here, there in zip(served.best, served.plain_best, strict=True))
        yield f"ceiling cpu {variant}", ceiling["cpu_ms_per_picture"] / many["cpu_ms_per_picture"]
        yield f"ceiling rate {variant}", served.rate("many") / served.rate("ceiling")
        yield f"bare p50 {variant}", own_ms - bare_ms
        yield f"p50 {variant}", own_ms - min(bare_ms, wide_ms)
        yield f"plain {variant}", served.rate("many") / served.rate("plain")
        yield f"agreement {variant}", equal / len(paths)
        yield from _seen(served, variant=variant)
        if variant == "fp32":
            yield "goodput", served.rate("over") / served.rate("many")
            yield "refusal", means["over"]["refused_p99_ms"]
            yield "start", served.first_answer_s
            yield "resident", served.resident_mb


def _serve(model: Path, paths: Sequence[Path], *, variant: str, seconds: float) -> Served:
    in_process = partial(_in_process, model, paths, seconds=seconds)
    ceiling = partial(in_process, "ceiling", "--variant", variant)
    batch = max((1, 4), key=lambda size: float(ceiling(threads=CORES, batch=size)["pictures_per_s"]))
    began = time.monotonic()
    with running_server(model.parent.parent, "--variant", variant, "--default-model", model.parent.name) as server:
        _best_labels(server, paths[:1])
        first_answer_s = time.monotonic() - began
        with running_module("benchmarks.least_server", str(model), "--variant", variant) as least:
            measures: dict[str, Callable[[], dict[str, Any]]] = {
                "plain": lambda: in_process("plain", "--labels", threads=CORES),
                "ceiling": lambda: ceiling(threads=CORES, batch=batch),
                **_loads(server, paths, seconds=seconds),
                "least many": lambda: load(least, paths, "--concurrency", "16", seconds=seconds),
                "bare": ceiling,
                "one": lambda: load(server, paths, "--concurrency", "1", seconds=seconds),
                "least one": lambda: load(least, paths, "--concurrency", "1", seconds=seconds),
                "wide": lambda: ceiling("--intra-op-threads", str(CORES)),
            }
            turns = [{name: measure() for name, measure in measures.items()} for _ in range(TURNS)]
        return Served(
            means={name: _mean([turn[name] for turn in turns]) for name in measures},
            best=_best_labels(server, paths),
            plain_best=turns[0]["plain"]["best"],
            first_answer_s=first_answer_s,
            resident_mb=server.resident_mb(),
        )


def _loads(
    server: ServerProcess, paths: Sequence[Path], *, seconds: float
) -> dict[str, Callable[[], dict[str, float]]]:
    """Return what puts every core to work: 16 callers, 4, and an open loop at twice what 16 get."""
    callers = partial(load, server, paths, "--concurrency", seconds=seconds)
    twice = partial(load, server, paths, "--rate", str(2 * callers("16")["pictures_per_s"]), seconds=seconds)
    return {
        "many": lambda: callers("16"),
        "few": lambda: callers("4"),
        "over": twice,
        "hurried": lambda: twice("--timeout", str(DEADLINE_S)),
    }


def _mean(figures: Sequence[dict[str, Any]]) -> Figures:
    return {
        name: statistics.fmean(one[name] or 0.0 for one in figures)  # none: nothing was refused
        for name, first in figures[0].items()
        if first is None or isinstance(first, int | float)
    }


def _seen(served: Served, *, variant: str) -> Iterator[tuple[str, float]]:
    many = served.means["many"]
    yield f"seen {variant} plain practice pictures/s", served.rate("plain")
    yield f"seen {variant} ceiling pictures/s", served.rate("ceiling")
    yield f"seen {variant} ceiling p50 ms, one thread", served.means["bare"]["p50_ms"]
    yield f"seen {variant} ceiling p50 ms, every core", served.means["wide"]["p50_ms"]
    yield f"seen {variant} pictures/s at 16", many["pictures_per_s"]
    yield f"seen {variant} pictures/s at 4", served.rate("few")
    yield f"seen {variant} p50 ms at 1", served.means["one"]["p50_ms"]
    yield f"seen {variant} p99 ms at 16", many["p99_ms"]
    yield f"seen {variant} server CPU ms a picture", many["cpu_ms_per_picture"]
    yield f"seen {variant} load generator CPU ms a picture", many["load_cpu_ms_per_picture"]
    yield f"seen {variant} least server's pictures/s at 16", served.rate("least many")
    yield f"seen {variant} least server's p50 ms at 1", served.means["least one"]["p50_ms"]
    yield f"seen {variant} least server's CPU ms a picture", served.means["least many"]["cpu_ms_per_picture"]
    yield f"seen {variant} accepted p99 ms at twice capacity", served.means["over"]["p99_ms"]
    share = served.rate("hurried") / many["pictures_per_s"]
    yield f"seen {variant} goodput at twice capacity with {DEADLINE_S} s each, of the peak", share
    yield f"seen {variant} resident MB after twice capacity", served.resident_mb


def _in_process(
    model: Path, paths: Sequence[Path], recipe: str, *options: str, seconds: float, threads: int = 1, batch: int = 1
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.inprocess", recipe, str(model), *map(str, paths), *options]
    command += ["--threads", str(threads), "--batch", str(batch), "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _best_labels(server: ServerProcess, paths: Sequence[Path]) -> list[int]:
    """Return the index of the best label of each picture."""
    with Client(server.address) as client:
        answers = (client.classify([path.read_bytes()], top_k=1) for path in paths)
        return [answer.results[0].predictions[0].index for answer in answers]


def camera(model: Path, paths: Sequence[Path]) -> Iterator[tuple[str, float]]:
    """Compare our decoding of camera-size pictures with a plain one: speed, and the best label of each."""
    from benchmarks.inprocess import best_labels, ceiling, plain, plain_input

    bundle = load_bundle(model)
    contract = bundle.manifest.contract
    large = [_enlarged(path) for path in paths[:CAMERA_PICTURES]]
    plain_s = _seconds(lambda data: plain_input(data, contract), large)
    own_s = _seconds(lambda data: load_input(data, contract.preprocess), large)
    own, other = best_labels(ceiling(bundle, "fp32"), large), best_labels(plain(bundle), large)
    equal = sum(here == there for here, there in zip(own, other, strict=True))
    yield "camera", plain_s / own_s
    yield "camera agreement", equal / len(large)


def _enlarged(path: Path) -> bytes:
    out = BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize(CAMERA_PX, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _seconds(prepare: Callable[[bytes], object], pictures: Sequence[bytes]) -> float:
    """Return the median time of one picture."""
    times_s = []
    for data in pictures:
        started = time.perf_counter()
        prepare(data)
        times_s.append(time.perf_counter() - started)
    return statistics.median(times_s)
