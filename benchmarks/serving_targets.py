"""Compare the server with the in-process ceiling and with plain practice, and print each target beside its value.

`make bench [DATA=folder] [MODEL=models/NAME/VERSION]`. Every figure is a ratio within one round, of what was
measured in turns on the same cores with the same pictures, and the medians over the rounds are shown. The
load generator runs on the same cores; its CPU time is told beside, and only the server's own is held against the
ceiling's.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.serving_round import camera, one_round
from bundle.errors import BundleError
from bundle.repository import load_bundle

VARIANTS: Final = ("fp32", "int8")
console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 140)  # a pipe has no width


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table."""

    name: str
    wanted: float
    is_least: bool  # wanted is the least, not the most, that will do
    unit: str = ""


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
    seconds: Annotated[float, typer.Option(help="Measure each turn for so many s.", min=1)] = 2.0,
    pictures: Annotated[int, typer.Option(help="Use at most so many pictures.", min=8)] = 200,
) -> None:
    """Print the table; exit 1 where a target is missed."""
    paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:pictures]
    if not paths:
        raise typer.BadParameter(f"{data}: no .jpg below, wanted pictures of about 100 KB")
    try:
        offered = {variant.precision for variant in load_bundle(model).manifest.variants}
    except BundleError as error:
        raise typer.BadParameter(str(error)) from error
    variants = [name for name in VARIANTS if name in offered]  # fp16 is for GPUs
    values: dict[str, list[float]] = {}
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}")
        for key, value in one_round(model, paths, variants=variants, seconds=seconds):
            values.setdefault(key, []).append(value)
    for key, value in camera(model, paths):
        values.setdefault(key, []).append(value)
    is_missed = _print(values)
    raise typer.Exit(int(is_missed))


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
