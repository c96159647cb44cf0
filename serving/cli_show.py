"""What the commands print: tables for people, JSON for programs."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from serving.answers import Classification
from serving.bench import Measurement


def show_answers(images: list[Path], answers: list[Classification], *, as_json: bool) -> None:
    """Print what each picture got."""
    _print_json(_as_records(images, answers)) if as_json else _print_answers(images, answers)


def show_measurement(measured: Measurement, *, as_json: bool) -> None:
    """Print figures, in JSON null for what there is none of."""
    _print_json(_without_nan(asdict(measured))) if as_json else _print_measurement(measured)


def _as_records(images: list[Path], answers: list[Classification]) -> list[dict[str, object]]:
    return [
        {"image": str(path), "model": answer.model, "version": answer.version, **asdict(answer.results[0])}
        for path, answer in zip(images, answers, strict=True)
    ]


def _print_answers(images: list[Path], answers: list[Classification]) -> None:
    table = Table(Column("picture", overflow="fold"), Column("label", overflow="fold"), "score")
    for path, answer in zip(images, answers, strict=True):
        name, result = escape(str(path)), answer.results[0]  # square brackets would be taken for markup
        if result.error:
            table.add_row(name, escape(f"{result.error.code}: {result.error.message}"), "")
        if result.unknown:
            table.add_row(name, "unknown, perhaps", "")
        if not (result.error or result.unknown or result.predictions):
            table.add_row(name, "no score is that high", "")
        for place, one in enumerate(result.predictions):
            table.add_row("" if place or result.unknown else name, escape(one.label), f"{one.score:.4f}")
    Console().print(table)


def _print_measurement(measured: Measurement) -> None:
    errors = Column("errors", overflow="fold")
    table = Table("requests", "seconds", "pictures/s", "p50 ms", "p90 ms", "p99 ms", errors)
    latencies = (measured.p50_ms, measured.p90_ms, measured.p99_ms)
    table.add_row(
        str(measured.requests),
        f"{measured.seconds:.1f}",
        f"{measured.pictures_per_s:.1f}",
        *("-" if math.isnan(value) else f"{value:.1f}" for value in latencies),
        ", ".join(f"{status}: {number}" for status, number in measured.errors.items()) or "none",
    )
    Console().print(table)


def _without_nan(figures: dict[str, object]) -> dict[str, object]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in figures.items()}


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))
