"""What INT8 brings to four networks, from training to verdict.

`python -m benchmarks.int8_table [--photographs FOLDER]`.

EfficientNet-Lite0 keeps its ImageNet weights under a linear probe on the folder of photographs. ResNet-18,
MobileNetV3-Large and VGG-11, plain and with BatchNorm, start from random weights and see 1,200 digits; they are judged
on 500 others. Runs that are there already are not trained again.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from bundle.manifest import Candidate
from demo import digits
from trainer import runs, train
from trainer.config import FitConfig
from trainer.export import Exported, export
from trainer.int8_search import KEPT

DIGITS_PER_CLASS: Final = {"train": 120, "val": 50, "test": 50}
DIGITS_CONFIG: Final = FitConfig(
    weights="none",
    image_size=64,
    epochs=5,
    batch_size=32,
    lr=2e-3,
    body_lr_factor=1,
    augment="none",
    ema=0,
)
console = Console(soft_wrap=True, highlight=False, width=140)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and the pictures it learns."""

    name: str
    config: FitConfig
    is_photographs: bool = False


CASES: Final = (
    Case(name="lite0", config=FitConfig(epochs=0), is_photographs=True),
    Case(name="resnet18", config=replace(DIGITS_CONFIG, backbone="resnet18")),
    Case(  # its BatchNorm averages over the last 100 batches or so, and needs several times as many
        name="mobilenet_v3_large",
        config=replace(DIGITS_CONFIG, backbone="mobilenet_v3_large", lr=1e-3, epochs=10, batch_size=16),
    ),
    Case(name="vgg11", config=replace(DIGITS_CONFIG, backbone="vgg11", lr=2e-4, epochs=8)),
    Case(name="vgg11_bn", config=replace(DIGITS_CONFIG, backbone="vgg11_bn", lr=5e-4)),
)


def main(
    photographs: Annotated[
        Path | None, typer.Option(help="Name the folder for Lite0; without: it is left out.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Keep runs and models below this folder.")] = Path(".cache/int8"),
    only: Annotated[str, typer.Option(help="Run this case alone.")] = "",
) -> None:
    """Train, export and print the table."""
    table = Table(
        "network", "px", "accuracy fp32", "int8", "ms b1 fp32", "int8", "ms b8 fp32", "int8", "MB fp32", "int8"
    )
    table.add_column("seconds")
    reasons = []
    for case in CASES:
        if (only and case.name != only) or (case.is_photographs and photographs is None):
            continue
        data = photographs if case.is_photographs and photographs else _digits(work)
        run = work / "runs" / case.name
        if not (run / "best.json").exists():
            shutil.rmtree(run, ignore_errors=True)
            train.fit(runs.begin(data, run, case.config))
        exported = export(run, work / "models", case.name, with_torchscript=False)
        assert exported.int8 is not None
        table.add_row(*_row(case, exported))
        reasons.append(f"{case.name}: {exported.int8.reason}")
        for line in exported.int8.candidates:
            console.print(f"{case.name}: {line.name}: {line.accuracy.value:.4f}, {line.verdict}", markup=False)
    console.print(table)
    for reason in reasons:
        console.print(reason, markup=False)


def _row(case: Case, exported: Exported) -> list[str]:
    assert exported.int8 is not None
    fp32, *others = exported.int8.candidates
    kept = [line for line in others if line.verdict == KEPT]
    shown = kept[0] if kept else min(others, key=lambda line: (-line.accuracy.value, line.latency_ms))
    figures = zip(_figures(fp32), _figures(shown), strict=True)
    px = str(case.config.image_size or 224)
    return [case.name, px, *(text for pair in figures for text in pair), f"{exported.int8.seconds:.0f}"]


def _figures(line: Candidate) -> tuple[str, ...]:
    return (
        f"{line.accuracy.value:.4f}",
        f"{line.latency_ms:.1f}",
        f"{line.latency_batch8_ms:.1f}",
        f"{line.size_bytes / 1e6:.1f}",
    )


def _digits(work: Path) -> Path:
    """Return a folder with a part of the digits."""
    part = work / "digits"
    if not part.exists():
        whole = digits.prepare(work / "all-digits", Path(".cache/wheels"))
        for side, count in DIGITS_PER_CLASS.items():
            for folder in sorted((whole / side).iterdir()):
                (part / side / folder.name).mkdir(parents=True)
                for path in sorted(folder.iterdir())[:count]:
                    shutil.copy(path, part / side / folder.name)
    return part


if __name__ == "__main__":
    typer.run(main)
