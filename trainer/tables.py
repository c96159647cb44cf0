"""Print measurements for a person: what `trainer evaluate` and `trainer compare` show on stdout."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from bundle.manifest import Candidate, Interval
from trainer.calibration import Calibration, ClassThreshold
from trainer.compare import Comparison, p_value
from trainer.data import Side
from trainer.metrics import Evaluation
from trainer.proof import Parity
from trainer.train import Outcome

_MAX_CONFUSION: Final = 20  # classes; wider tables fit no terminal


def print_stages(out: Console, outcome: Outcome) -> None:
    """Print how probe and fine-tuning came out."""
    table = Table("stage", "validation accuracy", "log-loss", "seconds")
    stages = [("linear probe", outcome.probe, outcome.seconds_probe)]
    if outcome.fine_tuned:
        stages.append(("fine-tuned", outcome.fine_tuned, outcome.seconds_fine_tune))
    for name, score, seconds in stages:
        table.add_row(name, f"{score.accuracy:.4f}", f"{score.log_loss:.4f}", f"{seconds:.1f}")
    out.print(table)


def print_parity(out: Console, parity: Sequence[Parity], *, held_out: Side) -> None:
    """Print how every runtime compares with torch."""
    columns = ("runtime", "pictures", "equal top-1", "largest difference")
    table = Table(*columns, title=f"parity with torch on {held_out}")
    for row in parity:
        table.add_row(row.runtime, str(row.picture_count), str(row.equal_top1), f"{row.max_difference:.1e}")
    out.print(table)


def print_candidates(out: Console, candidates: Sequence[Candidate]) -> None:
    """Print what the search for INT8 tried."""
    columns = ("accuracy", "as fp32", "ms, batch 1", "ms, batch 8", "MB")
    title = "int8: chosen on validation pictures, timed on one thread"
    table = Table(Column("candidate", no_wrap=True), *columns, title=title)
    for row in candidates:
        table.add_row(
            row.name,
            f"{row.accuracy.value:.4f}",
            f"{row.agreement:.1%}",
            f"{row.latency_ms:.1f}",
            f"{row.latency_batch8_ms:.1f}",
            f"{row.size_bytes / 1e6:.1f}",
        )
    out.print(table)
    for row in candidates:
        out.print(f"{row.name}: {row.verdict}", markup=False, highlight=False)


def print_evaluation(out: Console, evaluation: Evaluation) -> None:
    """Print headlines, classes and the confusion matrix."""
    table = Table("measure", "value", "95 % interval", title=f"{evaluation.picture_count:,} pictures")
    for name, interval in evaluation.headlines.items():
        table.add_row(name, f"{interval.value:.4f}", f"{interval.low:.4f} – {interval.high:.4f}")
    out.print(table)
    classes = Table("class", "count", "precision", "recall", "F1", title="with 95 % intervals")
    for row in evaluation.classes:
        shares = (with_bounds(share, bound_digits=2) for share in (row.precision, row.recall, row.f1))
        classes.add_row(escape(row.label), str(row.count), *shares)
    out.print(classes)
    if len(evaluation.classes) <= _MAX_CONFUSION:
        confusion = Table("truth \\ answer", *(escape(row.label) for row in evaluation.classes))
        for row, counts in zip(evaluation.classes, evaluation.confusion, strict=True):
            confusion.add_row(escape(row.label), *map(str, counts))
        out.print(confusion)


def print_calibration(out: Console, calibration: Calibration) -> None:
    """Print what the temperature does."""
    title = f"temperature {calibration.temperature:.3f}, fitted on {calibration.fitted_on}"
    table = Table("calibration", "before", "after", title=title)
    for name, before in calibration.before.items():
        table.add_row(name, with_bounds(before), with_bounds(calibration.after[name]))
    out.print(table)


def print_unknown(out: Console, unknown_below: float) -> None:
    """Print when a picture is called unknown."""
    out.print(
        f"unknown: a similarity to the training pictures below {unknown_below:.4f}; "
        "at least 95 % of the validation pictures reach it"
    )


def print_thresholds(out: Console, thresholds: tuple[ClassThreshold, ...], *, precision: float) -> None:
    """Print from which score on a class's answers are right so often."""
    table = Table("class", "threshold", "precision", "recall left", title=f"thresholds for precision {precision:g}")
    for row in thresholds:
        threshold = "not reachable" if row.threshold is None else f"{row.threshold:.4f}"
        table.add_row(escape(row.label), threshold, with_bounds(row.precision), with_bounds(row.recall))
    out.print(table)


def print_comparison(out: Console, comparison: Comparison, *, first: str, second: str) -> None:
    """Print both models' measures, and the verdict."""
    table = Table(
        "measure", escape(first), escape(second), "difference", "p", title=f"{comparison.picture_count:,} pictures"
    )
    for row in (comparison.accuracy, comparison.log_loss):
        table.add_row(row.name, *map(with_bounds, (row.first, row.second, row.difference)), p_value(row.p_value))
    out.print(table)
    if comparison.left_out_count:
        out.print(f"left out {comparison.left_out_count:,} pictures that one of them was trained on")
    out.print(
        f"only {first} is right on {comparison.only_first_right}, only {second} on {comparison.only_second_right}",
        markup=False,
    )
    out.print(comparison.verdict(first, second), markup=False)


def with_bounds(interval: Interval | None, *, bound_digits: int = 3) -> str:
    """Return a value with its bounds, or a dash."""
    if interval is None:
        return "–"
    return f"{interval.value:.3f} ({interval.low:.{bound_digits}f} – {interval.high:.{bound_digits}f})"
