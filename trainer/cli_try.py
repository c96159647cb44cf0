"""The commands to try before a fit: which backbones there are, which is best, which learning rate. None makes a run."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from bundle.flags import spread
from trainer.cli_show import out
from trainer.config import FitConfig
from trainer.data_cli import AsJson, DataSet

if TYPE_CHECKING:
    from trainer.baseline import Baseline

try_app = typer.Typer()


@try_app.command()
def backbones(
    pattern: Annotated[str, typer.Argument(help="List only names like this, such as 'timm:*lite*'.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the networks by name; any timm model goes as timm:NAME."""
    from trainer.backbones import infos

    rows = infos(pattern)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    table = Table(Column("name", no_wrap=True), "million parameters", "GMACs", "ImageNet top-1 %", "px", "offline")
    for row in rows:
        figures = (row.parameters_m, row.gmacs, row.top1)
        table.add_row(
            row.name,
            *(f"{value:.1f}" if value is not None else "–" for value in figures),
            str(row.input_px or "–"),
            "yes" if row.offline else "no",
        )
    out.print(table)


@try_app.command()
def baseline(
    data: DataSet,
    backbones: Annotated[
        str, typer.Option(help="Name networks, a,b,c; default: all whose weights are on this machine.")
    ] = "",
    image_size: Annotated[
        str, typer.Option(help="Try input sides in pixels, such as 224,288; default: each backbone's.")
    ] = "",
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Say which backbone answers in so many ms on this CPU.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare backbones before training: linear probe, k-NN, learning curve and latency."""
    from trainer.baseline import best_within, measure_baselines, offline_backbones  # torch takes seconds to import
    from trainer.progress import Progress

    names = tuple(name.strip() for name in backbones.split(",") if name.strip()) or offline_backbones()
    sides = _sides(image_size) or (None,)
    rows = measure_baselines(data, names, image_sizes=sides, max_bad=FitConfig().max_bad, progress=Progress())
    best = rows[0] if max_latency_ms is None else best_within(rows, max_latency_ms=max_latency_ms)
    if as_json:
        answer = {"backbones": [dataclasses.asdict(row) for row in rows], "best": best.backbone if best else None}
        typer.echo(json.dumps(answer, indent=1))
        return
    _print_baselines(rows)
    if best is None:
        out.print(f"no backbone meets {max_latency_ms:g} ms on this CPU; next: try a smaller --image-size")
        return
    if max_latency_ms is not None:
        out.print(
            f"{best.backbone} at {best.input_px} px is the most accurate of those that meet {max_latency_ms:g} ms on "
            "this CPU"
        )
    side = f" --image-size {best.input_px}" if image_size else ""
    out.print(f"next: trainer fit {data} --out runs/NAME --backbone {best.backbone}{side}", markup=False)


def _sides(text: str) -> tuple[int, ...]:
    """Return the numbers of "224,288", nothing for nothing. Raises typer.BadParameter."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and 16 <= int(part) <= 1024 for part in parts):
        raise typer.BadParameter(f"--image-size: found {text!r}, wanted pixels from 16 to 1024, such as 224,288")
    return tuple(dict.fromkeys(map(int, parts)))


def _print_baselines(rows: "tuple[Baseline, ...]") -> None:
    shares = list(rows[0].measured.curve)
    table = Table(
        Column("backbone", no_wrap=True),
        "px",
        "linear probe",
        "k-NN",
        *(f"with {share:.0%} of the data" for share in shares),
        "ms a picture, 1 thread",
        title="accuracy in repeated cross-validation, ± 95 %",
    )
    for row in rows:
        curve = [str(row.measured.curve[share]) for share in shares]
        found = row.measured
        table.add_row(
            row.backbone, str(row.input_px), str(found.probe), str(found.neighbours), *curve, f"{row.latency_ms:.1f}"
        )
    out.print(table)


@try_app.command("lr-find")
@spread(FitConfig)
def lr_find(
    data: DataSet,
    config: FitConfig,
    steps: Annotated[int, typer.Option(help="Ramp over so many steps.", min=20, max=2000)] = 100,
    to: Annotated[Path, typer.Option("--to", help="Write this plot, .svg or .png.")] = Path("lr-find.svg"),
) -> None:
    """Suggest a learning rate: raise it step by step until the loss explodes, and plot that."""
    from trainer.lr_find import find_rates, plot

    found = find_rates(data, config, steps=steps)
    plot(found, to)
    out.print(f"suggestion: {found.suggestion:.1e}, where the loss falls most steeply")
    out.print(f"wrote {to}; next: trainer fit {data} --out runs/NAME --lr {found.suggestion:.1e}", markup=False)
