"""The commands that show rather than make: a report, what an answer rests on, what a network consists of."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

show_app = typer.Typer()
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)  # a pipe has no width


@show_app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Name a run folder that `trainer fit` wrote.")],
    to: Annotated[Path | None, typer.Option("--to", help="Write this file; default: report.html in the run.")] = None,
) -> None:
    """Write a run's report anew: one HTML file that needs no network."""
    from trainer.report.render import REPORT_NAME, write_report  # torch takes seconds to import

    target = to or run / REPORT_NAME
    write_report(run, target)
    out.print(f"wrote {target}; next: trainer export {run} --to models --name NAME", markup=False)


@show_app.command()
def explain(
    bundle: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")],
    image: Annotated[Path, typer.Argument(help="Name a picture.")],
    to: Annotated[Path, typer.Option("--to", help="Write this PNG.")] = Path("overlay.png"),
) -> None:
    """Show which part of a picture the answer rests on, by covering part after part."""
    from trainer.explain import explain as explain_answer

    explanation = explain_answer(bundle, image)
    explanation.picture.save(to, format="PNG")  # whatever its name
    out.print(f"{image}: {explanation.label} {explanation.score:.4f}", markup=False)
    out.print(f"wrote {to}; next: trainer predict {bundle} {image}", markup=False)


@show_app.command()
def summary(
    backbone: Annotated[str, typer.Argument(help="Name the network; `trainer backbones` lists them.")],
    image_size: Annotated[
        int | None, typer.Option(help="Set the input side in pixels; default: the backbone's.", min=16, max=1024)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List a network's layers with output shapes, parameters, multiply-accumulates and receptive fields."""
    from trainer.summary import summarize

    measured = summarize(backbone, image_size=image_size)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(measured), indent=1))
        return
    table = Table(
        Column("layer", no_wrap=True),
        "operation",
        *(
            Column(name, justify="right", no_wrap=True)
            for name in ("output", "parameters", "million MACs", "receptive field, px")
        ),
        title=f"{backbone}, one picture of {measured.input_px} × {measured.input_px} px",
    )
    for layer in measured.layers:
        shape = " × ".join(map(str, layer.output_shape))
        macs = f"{layer.macs / 1e6:,.2f}" if layer.macs else "–"
        table.add_row(layer.name, layer.operation, shape, f"{layer.parameters:,}", macs, str(layer.field))
    out.print(table)
    if any(layer.field.whole and layer.field.axes for layer in measured.layers):
        out.print("+ whole: squeeze and excitation lets an average over the whole picture in")
    out.print(
        f"{measured.parameters:,} parameters, {measured.macs / 1e9:.3f} billion multiply-accumulates; "
        f"next: trainer fit DATA --out runs/NAME --backbone {backbone}"
    )
