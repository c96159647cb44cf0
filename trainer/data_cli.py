"""The data commands of the trainer's command line: check, clean, preview."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from bundle.flags import spread
from trainer.config import AugmentConfig, FitConfig
from trainer.fixes import RULE

if TYPE_CHECKING:
    from trainer.data_check import DataCheck

data_app = typer.Typer(no_args_is_help=True, help="Look at a data set, and clean it.")
out = Console(highlight=False, soft_wrap=True)
_SHOWN: Final = 10  # of a kind; --json has all

DataSet = Annotated[Path, typer.Argument(help="Name a folder with train/ and val/, one folder a class, or a CSV.")]
RunFolder = Annotated[Path, typer.Argument(help="Name a run folder that `trainer fit` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@data_app.command("check")
def data_check(
    data: DataSet,
    group_by: Annotated[str, typer.Option(help="Find a picture's group in its path: a regex with (group).")] = "",
    as_json: AsJson = False,
) -> None:
    """Count pictures, find duplicates and odd ones; exit 1 where an evaluation would be spoilt."""
    from trainer.data import load_dataset  # scipy takes a second to import; --help should not
    from trainer.data_check import DataCheck, check_dataset

    defaults = FitConfig()
    dataset = load_dataset(
        data,
        seed=defaults.seed,
        val_share=defaults.val_share,
        test_share=defaults.test_share,
        max_bad=1.0,
        group_by=group_by,
    )
    found = check_dataset(dataset)
    if as_json:
        typer.echo(json.dumps(TypeAdapter(DataCheck).dump_python(found, mode="json"), indent=1))
    else:
        _print_check(found)
    if found.problems:
        raise typer.Exit(1)


def _print_check(found: "DataCheck") -> None:
    counts = Table("class", *next(iter(found.counts.values())), title=escape(f"{found.root}: {found.split}"))
    for label, row in found.counts.items():
        counts.add_row(escape(label), *map(str, row.values()))
    out.print(counts)
    sizes = Table("pixels", "least", "median", "largest")
    for name, spread_px in (("width", found.width_px), ("height", found.height_px)):
        sizes.add_row(name, str(spread_px.least), str(spread_px.median), str(spread_px.largest))
    out.print(sizes)
    for name, kinds in (("formats", found.formats), ("modes", found.modes)):
        out.print(f"{name}: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.items()))
    out.print(f"imbalance in training: the largest class has {found.imbalance:.1f} times the smallest")
    _print_list("unreadable", [f"{item.path}: {item.reason}" for item in found.unreadable])
    for item in found.duplicates[:_SHOWN]:
        where = ("ACROSS SIDES, " if item.is_across_sides else "") + ("TWO LABELS, " if item.is_across_labels else "")
        files = ", ".join(f"{place.path} ({place.side}, {place.label})" for place in item.places[:_SHOWN])
        out.print(f"{item.kind} duplicates: {where}{len(item.places)} files: {files}", markup=False)
    _print_rest("duplicates", len(found.duplicates))
    _print_list("group on two sides", list(found.groups_across_sides))
    _print_list("suspicious", [f"{item.path}: {item.reason}" for item in found.suspects])
    total = sum(sum(row.values()) for row in found.counts.values())
    verdict = "problems: " + "; ".join(found.problems) if found.problems else "clean"
    out.print(f"{total:,} pictures, {verdict}; next: trainer fit {found.root} --out runs/NAME", markup=False)


def _print_list(kind: str, lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        out.print(f"{kind}: {line}", markup=False)
    _print_rest(kind, len(lines))


def _print_rest(kind: str, count: int) -> None:
    if count > _SHOWN:
        out.print(f"{kind}: … and {count - _SHOWN:,} more; --json lists them")


@data_app.command("clean")
def data_clean(
    run: RunFolder,
    to: Annotated[Path | None, typer.Option("--to", help="Write this CSV; default: RUN/fixes.csv.")] = None,
) -> None:
    """List likely label errors and the hardest errors in a CSV for you to edit; no picture is changed.

    A picture is suspected where a classifier that has not seen it, nor its duplicates, prefers another label, and it is
    among the surest such pictures: as many for each pair of classes as confident learning estimates to be mislabelled.
    """
    from trainer.checkpoint import read_run
    from trainer.clean import clean

    cleaned = clean(run, to or run / "fixes.csv")
    table = Table(Column("picture", overflow="fold"), "label", "suggested", "confidence", "reason")
    for fix in cleaned.fixes[:_SHOWN]:
        confidence = "–" if fix.confidence is None else f"{fix.confidence:.3f}"
        row = ("/".join(fix.path.parts[-3:]), fix.label, fix.suggested_label, confidence, fix.reason)
        table.add_row(*map(escape, row), style=None if fix.changes else "dim")
    out.print(table)
    likely = sum(fix.changes for fix in cleaned.fixes)
    out.print(
        f"{likely:,} likely label errors among {cleaned.picture_count:,} pictures, "
        f"out-of-fold accuracy {cleaned.out_of_fold_accuracy:.4f}"
    )
    out.print(f"in the CSV, {RULE}")
    data = read_run(run).data
    next_command = f"trainer fit {data} --apply {cleaned.path} --out runs/NAME"
    out.print(f"wrote {cleaned.path}; edit it, next: {next_command}", markup=False)


@data_app.command("preview")
@spread(AugmentConfig)
def data_preview(
    data: DataSet,
    config: AugmentConfig,
    to: Annotated[Path, typer.Option("--to", help="Write this PNG.")] = Path("preview.png"),
) -> None:
    """Write a contact sheet of augmented pictures."""
    from trainer.preview import write_preview

    write_preview(data, config, to)
    out.print(f"wrote {to}; next: trainer fit {data} --out runs/NAME --augment {config.augment}")
