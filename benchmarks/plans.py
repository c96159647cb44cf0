"""Compare `--plan auto` with every fixed plan that could suit this machine: `python -m benchmarks.plans MODEL DATA`.

All are measured in turns, 16 callers each, on the same pictures; a plan's figure is the median of its rounds. Exits 1
where auto's is more than 5 % below the best fixed one's.
"""

import itertools
import os
import statistics
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.server_process import load, running_server

CORES: Final = len(os.sched_getaffinity(0))
WANTED: Final = 0.95
BATCHES: Final = (1, 2, 8)  # the sizes of runs in them follow the rule
AUTO: Final = ("--plan", "auto")
console = Console(soft_wrap=True, highlight=False)


def main(
    model: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")],
    data: Annotated[Path, typer.Argument(help="Name a folder of JPEGs, searched below.")],
    rounds: Annotated[int, typer.Option(help="Measure so often and show medians.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Measure each for so many s.", min=1)] = 4.0,
    variant: Annotated[str, typer.Option(help="Serve fp32 or int8.")] = "fp32",
) -> None:
    """Print pictures/s of every plan."""
    paths = sorted(data.rglob("*.jpg"))
    if not paths:
        raise typer.BadParameter(f"{data}: no .jpg below")
    plans = [AUTO, *fixed_plans()]
    rates: dict[tuple[str, ...], list[float]] = {plan: [] for plan in plans}
    for number, plan in itertools.product(range(rounds), plans):
        console.print(f"round {number + 1} of {rounds}: {' '.join(plan)}")
        options = ("--variant", variant, "--default-model", model.parent.name)
        with running_server(model.parent.parent, *options, *plan) as server:
            rates[plan].append(load(server, paths, "--concurrency", "16", seconds=seconds)["pictures_per_s"])
    medians = {plan: statistics.median(found) for plan, found in rates.items()}
    best = max(medians[plan] for plan in plans[1:])
    table = Table("plan", "pictures/s", "range", "of the best fixed", title=f"{variant}, {CORES} cores, 16 callers")
    for plan, median in sorted(medians.items(), key=lambda item: -item[1]):
        found = rates[plan]
        table.add_row(" ".join(plan), f"{median:.1f}", f"{min(found):.1f} – {max(found):.1f}", f"{median / best:.3f}")
    console.print(table)
    raise typer.Exit(int(medians[AUTO] < WANTED * best))


def fixed_plans() -> list[tuple[str, ...]]:
    """Return the options of each plan: one thread an instance or all cores in one, decoding beside it or not."""
    shapes = [(instances, 1) for instances in range(1, CORES + 2)] + ([(1, CORES)] if CORES > 1 else [])
    return [
        (
            *("--instances", str(instances), "--intra-op-threads", str(threads)),
            *("--decode-threads", str(decode), "--max-batch", str(batch)),
        )
        for (instances, threads), decode, batch in itertools.product(shapes, (0, CORES), BATCHES)
        if batch > 1 or decode == 0  # hand-overs pay only where batches form behind them
    ]


if __name__ == "__main__":
    typer.run(main)
