"""The commands on a bundle that is there: sign and verify it, measure its speed, compare it with another."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from trainer.data_cli import AsJson, DataSet
from trainer.errors import ConfigError

bundle_app = typer.Typer()
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)  # a pipe has no width
_MAX_ROWS: Final = 50

BundleFolder = Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")]


@bundle_app.command()
def keygen(key: Annotated[Path, typer.Argument(help="Write the private key here, the public one beside it.")]) -> None:
    """Write a new Ed25519 key pair to sign bundles with."""
    from bundle.signature import write_keys

    public = write_keys(key)
    typer.echo(f"wrote {key}, keep it secret, and {public}; next: trainer sign models/NAME/VERSION --key {key}")


@bundle_app.command()
def sign(
    bundle: BundleFolder,
    key: Annotated[Path, typer.Option("--key", help="Sign with this private key of `trainer keygen`.")],
) -> None:
    """Check a bundle's files and sign its manifest, which holds their hashes."""
    from bundle.signature import sign as sign_bundle

    written = sign_bundle(bundle, key)
    public = key.with_suffix(".pub")
    typer.echo(f"wrote {written}; next: serving run {bundle.parent.parent} --require-signature {public}")


@bundle_app.command()
def verify(
    bundle: BundleFolder,
    key: Annotated[Path, typer.Option("--key", help="Trust the public keys in this PEM file.")],
) -> None:
    """Check a bundle's signature and the hash of every file."""
    from bundle.signature import check_files
    from bundle.signature import verify as verify_bundle

    verified = verify_bundle(bundle, key)
    unlisted = check_files(verified)
    contract = verified.manifest.contract
    if unlisted:
        typer.echo(f"outside the signature: {', '.join(unlisted)}")
    typer.echo(
        f"{bundle} is {contract.name}/{contract.version}, whole and signed; "
        f"next: serving run {bundle.parent.parent} --require-signature {key}"
    )


@bundle_app.command()
def benchmark(
    bundle: BundleFolder,
    batch: Annotated[str, typer.Option(help="Run batches of these sizes.")] = "1,2,4,8",
    threads: Annotated[str, typer.Option(help="Run on so many threads.")] = "1,2",
    seconds: Annotated[float, typer.Option(help="Measure each combination for so many s.", min=0.001, max=600)] = 0.3,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Write throughput by batch size to this SVG.")] = None,
) -> None:
    """Measure every model file of a bundle on this machine, TorchScript beside ONNX Runtime."""
    from trainer.benchmark import measure
    from trainer.benchmark_plot import write_plot

    batches, thread_counts = _numbers("batch", batch), _numbers("threads", threads)
    typer.echo("measuring; whatever else runs on this machine shows in the figures", err=True)
    measured = measure(bundle, batches=batches, threads=thread_counts, seconds=seconds)
    if plot:
        write_plot(measured, plot)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(measured), indent=1))
        return
    numbers = [Column(title, justify="right") for title in ("threads", "batch", "median ms", "p90 ms", "pictures/s")]
    table = Table("runtime", *numbers, title=f"{measured.bundle} on {measured.processor}, {measured.cores} cores")
    for timing in measured.timings:
        figures = (timing.median_ms, timing.p90_ms, timing.pictures_per_s)
        counts = (str(timing.threads), str(timing.batch))
        table.add_row(timing.runtime, *counts, *(f"{figure:.2f}" for figure in figures[:2]), f"{figures[2]:.1f}")
    out.print(table)
    wrote = f"wrote {plot}" if plot else "nothing written"
    typer.echo(f"{wrote}; next: serving run {bundle.parent.parent}")


@bundle_app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Name the bundle that serves now.")],
    after: Annotated[Path, typer.Argument(help="Name the bundle that is to serve.")],
    data: DataSet,
    to: Annotated[Path, typer.Option("--to", help="Write the gallery here.")] = Path("diff.html"),
) -> None:
    """Show which pictures change their answer between two bundles."""
    from trainer.diff import KINDS, compare
    from trainer.report.diff_page import shown_name, write_page

    difference = compare(before, after, data)
    write_page(difference, to)
    table = Table("", "picture", "truth", "before", "now")
    for change in difference.changes[:_MAX_ROWS]:
        answers = [f"{answer.label} {answer.score:.4f}" for answer in (change.before, change.after)]
        texts = (shown_name(change, data), change.truth, *answers)
        table.add_row(change.kind, *map(escape, texts))
    if difference.changes:
        out.print(table)
    if len(difference.changes) > _MAX_ROWS:
        typer.echo(f"… and {len(difference.changes) - _MAX_ROWS} more")
    counts = ", ".join(f"{len(difference.of_kind(kind))} {kind}" for kind in KINDS)
    typer.echo(f"{len(difference.changes)} of {difference.picture_count} pictures get another answer: {counts}")
    typer.echo(
        f"accuracy {difference.accuracy_before.value:.4f} -> {difference.accuracy_after.value:.4f}, "
        f"McNemar p = {difference.p_value:.3g}"
    )
    typer.echo(f"wrote {to}; next: open it in a browser")


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--{option}: found {text!r}, wanted whole numbers with commas between, such as 1,2"
        ) from error
