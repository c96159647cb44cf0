"""Write a report as one HTML file: no script, no request, colours for light and dark, for a desk and for a phone.

Labels and file names come from whoever made the data: Jinja escapes them, and the page's policy forbids all but its
own style and pictures inside it.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2
import numpy as np

from bundle import __version__
from bundle.manifest import Interval
from trainer import checkpoint
from trainer.metrics import wilson
from trainer.progress import Progress
from trainer.report import plots
from trainer.report.collect import BundleFacts, Report, collect
from trainer.report.pictures import data_uri

REPORT_NAME: Final = "report.html"
_MATRIX_CLASSES: Final = 20  # more do not fit on a page: the most frequent confusions are listed instead


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of probe against fine-tuning."""

    name: str
    accuracy: Interval
    log_loss: float
    seconds: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often pictures of one class were named as another."""

    truth: str
    answer: str
    count: int


def write_report(run_folder: Path, target: Path, *, bundle: BundleFacts | None = None) -> None:
    """Measure a run and write its report; raises CheckpointError, OSError."""
    text = render(collect(run_folder), bundle)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


def try_write_report(run_folder: Path, target: Path, *, bundle: BundleFacts | None = None) -> bool:
    """Write the report, or say in one line why not: what was trained or exported is worth more than its report."""
    try:
        write_report(run_folder, target, bundle=bundle)
    except Exception as error:  # noqa: BLE001 -- whatever it is, hours of training must not be lost to it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        Progress().say(f"no report ({reason}); the rest is whole, try `trainer report {run_folder}`")
        return False
    return True


def render(report: Report, bundle: BundleFacts | None = None) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "count": count, "duration": duration, "size": size, "data_uri": data_uri,
    }  # fmt: skip
    style = environment.get_template("report.css").render()
    by_size = sorted(report.classes, key=lambda row: row.counts["train"])
    stages = _stages(report)
    return environment.get_template("report.html").render(
        report=report,
        bundle=bundle,
        title=f"{bundle.manifest.contract.name} {bundle.manifest.contract.version}" if bundle else report.title,
        style=style,
        style_hash="sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        labels_in_words=_in_words(report.run.labels),
        data_name=Path(report.run.data).name,
        stages=stages,
        seconds=sum(stage.seconds for stage in stages),
        plots={
            "loss": plots.loss_curves(report) if report.history else None,
            "accuracy": plots.accuracy_curve(report) if report.history else None,
            "reliability": plots.reliability(report),
            "confidence": plots.confidence_counts(report),
        },
        confusion_fits=len(report.run.labels) <= _MATRIX_CLASSES,
        confusions=_confusions(report),
        smallest=by_size[0],
        largest=by_size[-1],
        calotype_version=__version__,
    )


def percent(share: float, decimals: int = 1, *, sign: bool = True) -> str:
    """Return 0.954 as "95.4 %"."""
    return f"{100 * share:.{decimals}f}" + ("\N{NO-BREAK SPACE}%" if sign else "")


def count(number: int) -> str:
    """Return 5000 as "5,000"."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes}\N{NO-BREAK SPACE}min" if minutes < 100 else f"{minutes / 60:.1f}\N{NO-BREAK SPACE}h"


def size(byte_count: int) -> str:
    """Return bytes as megabytes."""
    return f"{byte_count / 1e6:.1f}\N{NO-BREAK SPACE}MB"


def _in_words(labels: tuple[str, ...]) -> str:
    if len(labels) == 2:
        return f"{labels[0]} and {labels[1]}"
    if len(labels) <= 5:
        return ", ".join(labels[:-1]) + f" and {labels[-1]}"
    return f"{len(labels)} classes"


def _stages(report: Report) -> list[Stage]:
    """Return the probe, and fine-tuning's best epoch where there was one."""
    probe, total = report.state.probe, report.counts["val"]
    assert probe is not None  # every run begins with one
    rows = [("linear probe", probe.accuracy, probe.log_loss, report.state.probe_seconds, "probe")]
    if report.history:
        best = checkpoint.best_first(report.history)[0]
        accuracy, log_loss = float(best["val_accuracy"]), float(best["val_log_loss"])
        rows.append(("fine-tuning", accuracy, log_loss, report.fine_tune_seconds, "fine-tune"))
    return [
        Stage(
            name=name,
            accuracy=wilson(round(accuracy * total), total),
            log_loss=log_loss,
            seconds=seconds,
            kept=report.state.best_stage == stage,
        )
        for name, accuracy, log_loss, seconds, stage in rows
    ]


def _confusions(report: Report) -> list[Confusion]:
    labels, matrix = report.run.labels, np.array(report.calibrated.confusion)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:20]
    pairs = [divmod(int(place), len(labels)) for place in order]
    return [
        Confusion(truth=labels[row], answer=labels[column], count=int(matrix[row, column]))
        for row, column in pairs
        if matrix[row, column]
    ]
