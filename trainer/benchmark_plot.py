"""The plot of `trainer benchmark`: throughput by batch size, a line for each runtime and number of threads."""

from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from trainer.benchmark import Benchmark

_COLOURS: Final = ("#8a5423", "#2f6c86", "#6b7f3a", "#7a4b86")
_DASHES: Final = ("-", "--", ":", "-.")


def write_plot(benchmark: Benchmark, target: Path) -> None:
    """Write an SVG, whatever the target's name; raises OSError."""
    timings = benchmark.timings
    runtimes = list(dict.fromkeys(timing.runtime for timing in timings))
    threads = sorted({timing.threads for timing in timings})
    batches = sorted({timing.batch for timing in timings})
    with mpl.rc_context({"svg.hashsalt": "calotype", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        for count in threads:
            for runtime in runtimes:
                line = sorted(
                    (t.batch, t.pictures_per_s) for t in timings if (t.runtime, t.threads) == (runtime, count)
                )
                axes.plot(
                    *zip(*line, strict=True),
                    color=_COLOURS[runtimes.index(runtime) % len(_COLOURS)],
                    linestyle=_DASHES[threads.index(count) % len(_DASHES)],
                    marker="o",
                    markersize=4,
                    label=f"{runtime}, {count} thread{'s' if count > 1 else ''}",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, labels=[str(batch) for batch in batches])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#e4ded4")
        axes.set_axisbelow(True)
        axes.set_xlabel("pictures in a batch")
        axes.set_ylabel("pictures/s")
        axes.set_title(f"{benchmark.bundle} on {benchmark.processor}, {benchmark.cores} cores", fontsize=10, loc="left")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(target, format="svg", metadata={"Date": None})
