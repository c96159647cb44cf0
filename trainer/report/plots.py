"""The report's diagrams: matplotlib draws them, as SVG that takes its colours from the page and so follows its theme.

matplotlib is told colours that stand for CSS ones, and writes them into style attributes, which the page's content
security policy forbids: both are rewritten here. No text of a user's gets into a diagram.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Final
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from trainer.metrics import wilson
from trainer.report.collect import Report

_INK, _MUTED, _LINE, _ACCENT, _SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_THEME: Final = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _SECOND: "var(--second)",
}
_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calotype",  # equal runs give equal bytes
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "grid.color": _LINE,
    "legend.frameon": False,
}
_INCHES: Final = (4.7, 3.1)  # drawn at 72 px an inch: text is legible at a phone's width
_BINS: Final = 10
_SVG: Final = "{http://www.w3.org/2000/svg}"
_REFERENCE: Final = re.compile(r"#([\w-]+)")
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def loss_curves(report: Report) -> str:
    """Return an SVG of training loss and validation log-loss by epoch."""
    epochs = [int(row["epoch"]) + 1 for row in report.history]
    with _figure("Loss by epoch, in training and on validation") as (axes, drawn):
        axes.plot(epochs, _column(report, "loss"), color=_MUTED, marker="o", markersize=3, label="training")
        axes.plot(epochs, _column(report, "val_log_loss"), color=_ACCENT, marker="o", markersize=3, label="validation")
        _mark_probe(axes, report, "log_loss")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
    return drawn[0]


def accuracy_curve(report: Report) -> str:
    """Return an SVG of validation accuracy by epoch, with its 95 % interval."""
    epochs = [int(row["epoch"]) + 1 for row in report.history]
    count = report.counts["val"]
    intervals = [wilson(round(value * count), count) for value in _column(report, "val_accuracy")]
    with _figure("Validation accuracy by epoch, with its 95 % interval") as (axes, drawn):
        axes.fill_between(
            epochs,
            [interval.low for interval in intervals],
            [interval.high for interval in intervals],
            color=_ACCENT,
            alpha=0.15,
            linewidth=0,
            label="95 % interval",
        )
        axes.plot(
            epochs,
            [interval.value for interval in intervals],
            color=_ACCENT,
            marker="o",
            markersize=3,
            label="fine-tuning",
        )
        _mark_probe(axes, report, "accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))
        axes.set_xlabel("epoch")
    return drawn[0]


def reliability(report: Report) -> str:
    """Return an SVG of how often answers of a given confidence are right, before and after calibration."""
    with _figure("Reliability: share of right answers by confidence, before and after calibration") as (axes, drawn):
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
        _bins(axes, report.raw_confidences, report.hits, colour=_SECOND, label="as trained", shift=-0.008)
        _bins(axes, report.confidences, report.hits, colour=_ACCENT, label="calibrated", shift=0.008)
        axes.set_xlim(_lowest(report), 1.02)
        axes.set_ylim(-0.03, 1.05)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xlabel("confidence of the answer")
        axes.set_ylabel("answers that are right")
    return drawn[0]


def confidence_counts(report: Report) -> str:
    """Return an SVG of how many answers are given with which confidence."""
    edges = [edge / (2 * _BINS) for edge in range(2 * _BINS + 1)]
    with _figure("Number of answers by confidence, right and wrong") as (axes, drawn):
        groups = [report.confidences[report.hits], report.confidences[~report.hits]]
        axes.hist(groups, bins=edges, stacked=True, color=[_ACCENT, _SECOND], label=["right", "wrong"], rwidth=0.9)
        axes.set_xlim(_lowest(report), 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("confidence of the answer")
        axes.set_ylabel("pictures")
    return drawn[0]


def _column(report: Report, name: str) -> list[float]:
    return [float(row[name]) for row in report.history]


def _mark_probe(axes: Axes, report: Report, name: str) -> None:
    assert report.state.probe is not None  # every run begins with one
    value = float(getattr(report.state.probe, name))
    axes.axhline(value, color=_SECOND, linestyle=(0, (4, 3)), linewidth=1.2, label="linear probe")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", linewidth=0.6)


def _lowest(report: Report) -> float:
    """No answer is less sure than 1 / classes: two classes need only half of the axis."""
    lowest = float(min(report.confidences.min(), report.raw_confidences.min()))
    return math.floor(lowest * _BINS) / _BINS - 0.02


def _bins(
    axes: Axes, confidences: NDArray[np.float64], hits: NDArray[np.bool_], *, colour: str, label: str, shift: float
) -> None:
    places = np.minimum((confidences * _BINS).astype(int), _BINS - 1)
    filled = [place for place in range(_BINS) if (places == place).any()]
    means = [float(confidences[places == place].mean()) + shift for place in filled]
    shares = [wilson(int(hits[places == place].sum()), int((places == place).sum())) for place in filled]
    values = [share.value for share in shares]
    below = [share.value - share.low for share in shares]
    above = [share.high - share.value for share in shares]
    areas = [20 + 60 * float((places == place).mean()) for place in filled]  # points squared
    axes.errorbar(means, values, yerr=[below, above], color=colour, linestyle="none", elinewidth=1.2, alpha=0.7)
    axes.scatter(means, values, s=areas, color=colour, label=label, zorder=3)
    axes.grid(linewidth=0.6)


@contextmanager
def _figure(description: str) -> Iterator[tuple[Axes, list[str]]]:
    """Yield axes to draw on, and a list that holds the SVG when the block has ended."""
    drawn: list[str] = []
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its stubs list the keys, not their values' types
        figure = Figure(figsize=_INCHES, layout="constrained")
        yield figure.subplots(), drawn
        figure.legend(loc="outside upper left", ncols=3)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn.append(_for_page(buffer.getvalue(), description))


def _for_page(text: str, description: str) -> str:
    """Rewrite matplotlib's SVG: theme colours, no style attributes, no ids but those it refers to, a description."""
    root = ElementTree.fromstring(text)  # noqa: S314 -- matplotlib wrote it a moment ago
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        for declaration in filter(None, element.attrib.pop("style", "").split(";")):
            name, _, value = declaration.partition(":")
            if not name.strip().startswith("font"):  # the page's own
                element.set(name.strip(), _THEME.get(value.strip(), value.strip()))
    _prefix_ids(root, "".join(filter(str.isalnum, description)))
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.attrib |= {"role": "img", "aria-label": description, "class": "plot"}
    return ElementTree.tostring(root, encoding="unicode")


def _prefix_ids(root: ElementTree.Element, prefix: str) -> None:
    """Keep the ids that something refers to, under names of their own: a page has several diagrams, each id once."""
    ids = {element.get("id") for element in root.iter()}
    referred: set[str] = set()

    def renamed(found: re.Match[str]) -> str:
        if found[1] not in ids:
            return found[0]  # a colour
        referred.add(found[1])
        return f"#{prefix}-{found[1]}"

    for element in root.iter():
        for name, value in element.attrib.items():
            element.set(name, _REFERENCE.sub(renamed, value))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in referred:
            element.set("id", f"{prefix}-{own}")
