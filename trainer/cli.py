"""The trainer's command line. Results go to stdout, progress to stderr; a user's error is one line and exit code 2."""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from bundle.errors import CalotypeError, ImageError
from bundle.flags import spread
from bundle.runtime import Choice
from trainer.bundle_cli import bundle_app
from trainer.cli_show import show_app
from trainer.cli_try import try_app
from trainer.config import FitConfig
from trainer.data_cli import AsJson, DataSet, RunFolder, data_app, out
from trainer.errors import Interrupted, ParityError

app = typer.Typer(
    help="Train an image classifier and export it with proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts the names of options at 80 columns
)
app.add_typer(data_app, name="data")
app.add_typer(try_app)
app.add_typer(show_app)
app.add_typer(bundle_app)
_EXIT_CODES: Final[dict[type[CalotypeError], int]] = {ParityError: 1, Interrupted: 130}  # 130: what a shell expects

Variant = Annotated[Choice, typer.Option(help="Run this variant of a bundle; auto: the one that a server takes.")]


@app.command()
@spread(FitConfig)
def fit(
    data: DataSet,
    out_folder: Annotated[Path, typer.Option("--out", help="Write the run into this folder.")],
    config: FitConfig,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its own settings.")] = False,
    track: Annotated[Literal["none", "mlflow"], typer.Option(help="Record the run here, and its bundles.")] = "none",
) -> None:
    """Train on a folder of pictures: linear probe, then fine-tuning; the better one is kept."""
    from trainer import runs, tracking, train  # torch takes seconds to import; --help should not
    from trainer.distributed import joined
    from trainer.report.render import REPORT_NAME, try_write_report
    from trainer.tables import print_stages

    if track == "mlflow":
        tracking.require_mlflow()
    with joined(config.device) as world:
        session = runs.resume(out_folder, world=world) if resume else runs.begin(data, out_folder, config, world=world)
        outcome = train.fit(session)
    if not world.is_first:
        return
    print_stages(out, outcome)
    if outcome.fine_tuned:
        typer.echo(f"training waited {outcome.waited_share:.1%} of fine-tuning for pictures", err=True)
    if outcome.verdict:
        typer.echo(outcome.verdict, err=True)
    report = out_folder / REPORT_NAME
    seen = f", see {report}" if try_write_report(out_folder, report) else ""
    if track == "mlflow" and tracking.track_fit(out_folder):
        seen += ", recorded in MLflow"
    next_command = f"trainer export {out_folder} --to models --name NAME"
    out.print(f"kept the {outcome.kept} in {out_folder}{seen}; next: {next_command}")


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(help="Name a run folder, or a bundle models/NAME/VERSION.")],
    data: DataSet,
    variant: Variant = "auto",
    precision: Annotated[
        float, typer.Option(help="Find each class's threshold for this precision, 0..1; 0: none.", min=0, max=1)
    ] = 0.0,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over each picture and its mirror image; runs only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run or a bundle on labelled pictures; a bundle answers through ONNX Runtime as in production."""
    from trainer.answers import answer
    from trainer.calibration import compare_temperature, precision_thresholds
    from trainer.metrics import evaluate as measure
    from trainer.tables import print_calibration, print_evaluation, print_thresholds

    answers = answer(target, data, variant=variant, tta=tta)
    evaluation = measure(answers.scores, answers.targets, answers.labels)
    calibration = compare_temperature(
        answers.logits, answers.targets, temperature=answers.temperature, fitted_on=answers.fitted_on
    )
    thresholds = (
        precision_thresholds(answers.scores, answers.targets, answers.labels, precision=precision) if precision else ()
    )
    if answers.seen_count:
        typer.echo(f"{answers.seen_count:,} of these pictures were in the training: the figures flatter", err=True)
    if as_json:
        measured = {
            **dataclasses.asdict(evaluation),
            "calibration": dataclasses.asdict(calibration),
            "thresholds": [dataclasses.asdict(row) for row in thresholds],
        }
        typer.echo(json.dumps(measured, indent=1))
        return
    print_evaluation(out, evaluation)
    print_calibration(out, calibration)
    if precision:
        print_thresholds(out, thresholds, precision=precision)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Name a run folder, or a bundle.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Name another.")],
    data: Annotated[
        Path | None, typer.Argument(help="Name labelled pictures; default: those that both runs held out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether one model is better than another, by a paired test on the same pictures."""
    from trainer.compare import compare as compare_models
    from trainer.tables import print_comparison

    comparison = compare_models(first, second, data)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(comparison), indent=1))
        return
    print_comparison(out, comparison, first=str(first), second=str(second))


@app.command()
def export(
    run: RunFolder,
    name: Annotated[str, typer.Option("--name", help="Name the model.")],
    to: Annotated[Path, typer.Option("--to", help="Write below this folder.")] = Path("models"),
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX; neither flag means both.")] = False,
    torchscript: Annotated[
        bool, typer.Option("--torchscript", help="Write TorchScript and torch.export's .pt2.")
    ] = False,
    portable: Annotated[
        bool, typer.Option("--portable", help="Add one ONNX graph from any decoded picture to probabilities.")
    ] = False,
    int8: Annotated[
        bool | None,
        typer.Option("--int8/--no-int8", help="Add INT8 where it is as right as fp32 and faster. [default: tried]"),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Add float16 for GPUs where it is as right as fp32.")] = False,
) -> None:
    """Write the next version of a model, after proving that every runtime gives the same answers."""
    from trainer.export import export as export_run
    from trainer.tables import print_calibration, print_candidates, print_parity, print_unknown
    from trainer.tracking import track_export

    exported = export_run(
        run,
        to,
        name,
        with_onnx=onnx or not torchscript,
        with_torchscript=torchscript or not onnx,
        with_portable=portable,
        with_int8=int8,
        with_fp16=fp16,
    )
    print_parity(out, exported.parity, held_out=exported.held_out)
    if exported.int8:
        if exported.int8.candidates:
            print_candidates(out, exported.int8.candidates)
        out.print(f"{exported.int8.reason}; looked for {exported.int8.seconds:.0f} s", markup=False)
    if exported.fp16:
        out.print(exported.fp16, markup=False)
    top1 = exported.metrics["top-1"]
    out.print(f"{exported.held_out} accuracy {top1.value:.4f} ({top1.low:.4f} – {top1.high:.4f})")
    print_calibration(out, exported.calibration)
    print_unknown(out, exported.unknown_below)
    recorded = ", recorded in MLflow" if track_export(run, exported.folder) else ""
    next_command = f"serving run {to}" if onnx or not torchscript else f"trainer export {run} --name {name} --onnx"
    out.print(f"wrote {exported.folder}{recorded}; next: {next_command}")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")],
    paths: Annotated[list[Path], typer.Argument(help="Name pictures, or folders of pictures.")],
    top_k: Annotated[int, typer.Option(help="Show so many labels.", min=1)] = 5,
    variant: Variant = "auto",
    as_json: AsJson = False,
) -> None:
    """Classify files with the deployed ONNX model."""
    from bundle.golden import open_proved
    from bundle.preprocess import load_input
    from bundle.repository import load_bundle
    from bundle.scores import is_unknown, probabilities, rank

    proved = open_proved(load_bundle(bundle), precision=variant)
    if proved.refused:
        typer.echo(f"answering with fp32: {proved.refused}", err=True)
    model = proved.model
    contract = model.bundle.manifest.contract
    failures = 0
    for path in _files(paths):
        try:
            output = model.run(load_input(path.read_bytes(), contract.preprocess)[None])
        except (ImageError, OSError) as error:
            failures += 1
            reason = error.strerror if isinstance(error, OSError) else str(error)
            typer.echo(json.dumps({"path": str(path), "error": reason}) if as_json else f"{path}: {reason}")
            continue
        scores = probabilities(output.logits[0], temperature=contract.temperature)
        ranked = rank(scores, contract.labels, top_k=top_k)
        unknown = is_unknown(output.similarity[0], unknown_below=contract.unknown_below)
        if as_json:
            predictions = [dataclasses.asdict(item) for item in ranked]
            typer.echo(json.dumps({"path": str(path), "unknown": unknown, "predictions": predictions}))
        else:
            listed = ", ".join(f"{item.label} {item.score:.4f}" for item in ranked)
            typer.echo(f"{path}: unknown, perhaps {listed}" if unknown else f"{path}: {listed}")
    if failures:
        raise typer.Exit(1)


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        yield from sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else (path,)


def main() -> None:
    """Run the command line; expected errors end it with one line."""
    try:
        app()
    except CalotypeError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(_EXIT_CODES.get(type(error), 2))
    except OSError as error:  # a place that cannot be written, a full disk: the reader's own files were handled before
        typer.echo(f"Error: {error.filename or 'writing'}: {error.strerror or error}; choose another place", err=True)
        sys.exit(2)
