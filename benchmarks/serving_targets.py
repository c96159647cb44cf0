"""Compare the server with the in-process ceiling and with plain practice, and print each target beside its value.

`make bench [DATA=folder] [MODEL=models/NAME/VERSION]`. Every figure is a ratio within one round: plain practice,
ceiling and server take turns on the same cores with the same pictures, and the medians over the rounds are shown. The
load generator runs on the same cores; its CPU time is told beside, and only the server's own is held against the
ceiling's.
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
from typing import Annotated, Any, Final

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.server_process import ServerProcess, load, running_server
from bundle.preprocess import load_input
from bundle.repository import load_bundle
from serving.client import Client

CORES: Final = len(os.sched_getaffinity(0))
DEADLINE_S: Final = 0.3
CAMERA_PX: Final = (4000, 3000)
CAMERA_PICTURES: Final = 40
VARIANTS: Final = ("fp32", "int8")
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table."""

    name: str
    wanted: float
    is_least: bool  # wanted is the least, not the most, that will do
    unit: str = ""


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


TARGETS: Final = {
    "ceiling cpu {variant}": Target(name="pictures per CPU-second, of the ceiling's", wanted=0.90, is_least=True),
    "ceiling rate {variant}": Target(name="throughput at 16 callers, of the ceiling's", wanted=0.85, is_least=True),
    "bare p50 {variant}": Target(name="p50 at 1 caller over one thread's", wanted=1.0, is_least=False, unit="ms"),
    "p50 {variant}": Target(name="p50 at 1 caller over the ceiling's", wanted=1.0, is_least=False, unit="ms"),
    "plain fp32": Target(name="throughput at 16 callers, of plain practice's", wanted=1.2, is_least=True),
    "plain int8": Target(name="throughput at 16 callers, of plain practice's", wanted=1.9, is_least=True),
    "agreement {variant}": Target(name="equal best label with plain practice", wanted=0.99, is_least=True),
    "camera": Target(name="12 megapixels, of a plain decode's speed", wanted=4.0, is_least=True),
    "camera agreement": Target(name="12 megapixels, equal best label", wanted=0.995, is_least=True),
    "goodput": Target(name="goodput at twice capacity, of the peak", wanted=0.9, is_least=True),
    "refusal": Target(name="p99 of a refusal at twice capacity", wanted=10.0, is_least=False, unit="ms"),
    "start": Target(name="first answer after starting", wanted=1.5, is_least=False, unit="s"),
    "resident": Target(name="resident memory, fp32", wanted=300.0, is_least=False, unit="MB"),
}


def main(
    model: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")],
    data: Annotated[Path, typer.Argument(help="Name a folder of JPEGs, searched below.")],
    rounds: Annotated[int, typer.Option(help="Measure so often and show medians.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Measure each for so many s.", min=1)] = 4.0,
    pictures: Annotated[int, typer.Option(help="Use at most so many pictures.", min=8)] = 200,
) -> None:
    """Print the table; exit 1 where a target is missed."""
    paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:pictures]
    if not paths:
        raise typer.BadParameter(f"{data}: no .jpg below, wanted pictures of about 100 KB")
    offered = {variant.precision for variant in load_bundle(model).manifest.variants}
    variants = [name for name in VARIANTS if name in offered]  # fp16 is for GPUs
    values: dict[str, list[float]] = {}
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}")
        for key, value in _round(model, paths, variants=variants, seconds=seconds):
            values.setdefault(key, []).append(value)
    for key, value in _camera(model, paths):
        values.setdefault(key, []).append(value)
    is_missed = _print(values)
    raise typer.Exit(int(is_missed))


def _round(
    model: Path, paths: Sequence[Path], *, variants: Sequence[str], seconds: float
) -> Iterator[tuple[str, float]]:
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


def _camera(model: Path, paths: Sequence[Path]) -> Iterator[tuple[str, float]]:
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


def _print(values: dict[str, list[float]]) -> bool:
    """Print medians beside their targets, then what was seen besides; say whether a target was missed."""
    table, is_missed = Table("target", "variant", "wanted", "median", "range", ""), False
    for pattern, target in TARGETS.items():
        for variant in VARIANTS if "{variant}" in pattern else (_variant(pattern),):
            found = values.get(pattern.format(variant=variant), [])
            if not found:
                continue
            median = statistics.median(found)
            is_met = median >= target.wanted if target.is_least else median <= target.wanted
            is_missed |= not is_met
            table.add_row(
                target.name,
                variant,
                f"{'≥' if target.is_least else '≤'} {target.wanted:g} {target.unit}",
                f"{median:.3g}",
                f"{min(found):.3g} – {max(found):.3g}",
                "met" if is_met else "MISSED",
            )
    console.print(table)
    for key, found in values.items():
        if key.startswith("seen "):
            console.print(f"{key[5:]}: {statistics.median(found):.4g} ({min(found):.4g} – {max(found):.4g})")
    return is_missed


def _variant(key: str) -> str:
    return next((variant for variant in VARIANTS if variant in key), "fp32")


if __name__ == "__main__":
    typer.run(main)
