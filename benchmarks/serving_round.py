"""One round of `serving_targets`: plain practice, the ceiling and a server take turns on the same cores and pictures.

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

from benchmarks.server_process import ServerProcess, load, running_server
from bundle.preprocess import load_input
from bundle.repository import load_bundle
from serving.client import Client

CORES: Final = len(os.sched_getaffinity(0))
DEADLINE_S: Final = 0.3
CAMERA_PX: Final = (4000, 3000)
CAMERA_PICTURES: Final = 40


@dataclass(frozen=True, kw_only=True)
class Served:
    """What one server showed; the loads' figures are those of `serving bench`."""

    many: dict[str, float]  # 16 callers
    few: dict[str, float]  # 4
    one: dict[str, float]
    over: dict[str, float]  # open loop at twice what 16 callers got
    hurried: dict[str, float]  # the same, each with DEADLINE_S
    best: list[int]  # index of the best label, picture by picture
    first_answer_s: float
    resident_mb: float  # after twice capacity


def one_round(
    model: Path, paths: Sequence[Path], *, variants: Sequence[str], seconds: float
) -> Iterator[tuple[str, float]]:
    """Yield what is measured of a bundle models/NAME/VERSION with these JPEGs, each load for so many seconds."""
    plain = _in_process("plain", model, paths, seconds=seconds, threads=CORES)
    yield "seen plain practice pictures/s", plain["pictures_per_s"]
    for variant in variants:
        ceiling, bare, wide = _ceilings(model, paths, variant=variant, seconds=seconds / 2)
        served = _serve(model, paths, variant=variant, seconds=seconds)
        many, one = served.many, served.one
        equal = sum(here == there for here, there in zip(served.best, plain["best"], strict=True))
        yield f"ceiling cpu {variant}", ceiling["cpu_ms_per_picture"] / many["cpu_ms_per_picture"]
        yield f"ceiling rate {variant}", many["pictures_per_s"] / ceiling["pictures_per_s"]
        yield f"bare p50 {variant}", one["p50_ms"] - bare["p50_ms"]
        yield f"p50 {variant}", one["p50_ms"] - min(bare["p50_ms"], wide["p50_ms"])
        yield f"plain {variant}", many["pictures_per_s"] / plain["pictures_per_s"]
        yield f"agreement {variant}", equal / len(paths)
        yield f"seen {variant} ceiling p50 ms, one thread", bare["p50_ms"]
        yield f"seen {variant} ceiling p50 ms, every core", wide["p50_ms"]
        yield f"seen {variant} ceiling pictures/s", ceiling["pictures_per_s"]
        yield from _seen(served, variant=variant)
        if variant == "fp32":
            yield "goodput", served.over["pictures_per_s"] / many["pictures_per_s"]
            yield "refusal", served.over["refused_p99_ms"] or 0.0
            yield "start", served.first_answer_s
            yield "resident", served.resident_mb


def _ceilings(model: Path, paths: Sequence[Path], *, variant: str, seconds: float) -> list[dict[str, Any]]:
    """Return the best plan's figures for many pictures, and one picture at a time on one thread and on every core."""
    measure = partial(_in_process, "ceiling", model, paths, "--variant", variant, seconds=seconds)
    many = [measure(threads=CORES, batch=batch) for batch in (1, 4)]
    best = max(many, key=lambda figures: float(figures["pictures_per_s"]))
    return [best, measure(), measure("--intra-op-threads", str(CORES))]


def _serve(model: Path, paths: Sequence[Path], *, variant: str, seconds: float) -> Served:
    began = time.monotonic()
    options = ("--variant", variant, "--default-model", model.parent.name)
    with running_server(model.parent.parent, *options) as server:
        _best_labels(server, paths[:1])
        first_answer_s = time.monotonic() - began
        load(server, paths, "--concurrency", "16", seconds=1.0)  # warms up, as the ceiling does
        many, few, one = (load(server, paths, "--concurrency", count, seconds=seconds) for count in ("16", "4", "1"))
        best = _best_labels(server, paths)
        twice = ("--rate", str(2 * many["pictures_per_s"]))
        over = load(server, paths, *twice, seconds=seconds)
        resident_mb = server.resident_mb()
        hurried = load(server, paths, *twice, "--timeout", str(DEADLINE_S), seconds=seconds)
    return Served(
        many=many,
        few=few,
        one=one,
        over=over,
        hurried=hurried,
        best=best,
        first_answer_s=first_answer_s,
        resident_mb=resident_mb,
    )


def _seen(served: Served, *, variant: str) -> Iterator[tuple[str, float]]:
    many = served.many
    share = served.hurried["pictures_per_s"] / many["pictures_per_s"]
    yield f"seen {variant} pictures/s at 16", many["pictures_per_s"]
    yield f"seen {variant} pictures/s at 4", served.few["pictures_per_s"]
    yield f"seen {variant} p50 ms at 1", served.one["p50_ms"]
    yield f"seen {variant} p99 ms at 16", many["p99_ms"]
    yield f"seen {variant} server CPU ms a picture", many["cpu_ms_per_picture"]
    yield f"seen {variant} load generator CPU ms a picture", many["load_cpu_ms_per_picture"]
    yield f"seen {variant} accepted p99 ms at twice capacity", served.over["p99_ms"]
    yield f"seen {variant} goodput at twice capacity with {DEADLINE_S} s each, of the peak", share
    yield f"seen {variant} resident MB after twice capacity", served.resident_mb


def _in_process(
    recipe: str, model: Path, paths: Sequence[Path], *options: str, seconds: float, threads: int = 1, batch: int = 1
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
    from benchmarks.inprocess import ceiling, plain, plain_input

    bundle = load_bundle(model)
    contract = bundle.manifest.contract
    large = [_enlarged(path) for path in paths[:CAMERA_PICTURES]]
    plain_s = _seconds(lambda data: plain_input(data, contract), large)
    own_s = _seconds(lambda data: load_input(data, contract.preprocess), large)
    own, other = ceiling(bundle, "fp32"), plain(bundle)
    equal = sum(int(own([data]).argmax()) == int(other([data]).argmax()) for data in large)
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
