"""The commands that show rather than make: a report, what an answer rests on, what a network consists of."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

show_app = typer.Typer()
out = Console(highlight=False, soft_wrap=True)


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
