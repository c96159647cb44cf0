"""The run folder: what a fit writes, and how a later command reads it back.

    run.json            configuration, labels, preprocessing, provenance, split: readable, written before training, and
                        once more after the probe, which decides how closely to look
    history.jsonl       one line an epoch
    split.csv           path, label, side, sha256, group and cluster of every picture
    applied-fixes.csv   the corrections that `fit --apply` made, where it did
    unreadable.csv      path and reason of every file that was left out
    epoch-*.safetensors     weights of the best epochs, while a fit with --soup lasts
    best.json, last.json    where the run stands and what it scored; names its weights file
    *.safetensors       weights (for `best` its validation logits, for `last` the optimizer and the running average)

A checkpoint is its JSON: tensors are written first, the JSON is replaced in one step, older tensors go last. All
randomness derives from (seed, epoch, step), so those three are the whole generator and sampler state.
"""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bundle.manifest import Provenance
from bundle.preprocess import PreprocessSpec
from trainer.budget import Plan
from trainer.config import FitConfig
from trainer.data import SIDES, BadFile, Dataset, Picture, Side
from trainer.errors import CheckpointError

Name = Literal["best", "last"]
APPLIED_FIXES: Final = "applied-fixes.csv"
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What never changes during a run, but for the spec, which the probe decides."""

    config: FitConfig
    data: str  # folder, absolute
    labels: tuple[str, ...]
    spec: PreprocessSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Score:
    """A validation score; better is higher accuracy, then lower log-loss."""

    accuracy: float
    log_loss: float

    def beats(self, other: "Score | None") -> bool:
        """Say whether this score is the better one."""
        return other is None or (self.accuracy, -self.log_loss) > (other.accuracy, -other.log_loss)


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands; `seed`, `epoch` and `step` are the generator and sampler state."""

    weights: str  # file name of the tensors
    stage: Literal["probe", "fine-tune"]
    seed: int
    epoch: int  # being trained, from 0
    step: int  # done in that epoch
    probe: Score | None = None
    best: Score | None = None
    best_stage: Literal["probe", "fine-tune"] = "probe"
    best_epoch: int = -1
    soup_epochs: tuple[int, ...] = ()  # whose mean `best` is, where it is one
    loss_sum: float = 0.0  # over the steps of this epoch
    finished: bool = False
    chose_crop: bool = False  # whether validation chose how closely to look
    plan: Plan | None = None  # of fine-tuning; made after the probe
    probe_seconds: float = 0.0
    fine_tune_seconds: float = 0.0  # of whole epochs
    data_wait_seconds: float = 0.0  # of those, what training waited for pictures


_RUN = TypeAdapter(Run)
_STATE = TypeAdapter(State)


def check_free(folder: Path) -> None:
    """Raise CheckpointError where there is a run already: one that ended before its first checkpoint is none."""
    if any((folder / f"{name}.json").exists() for name in get_args(Name)):
        raise CheckpointError(f"{folder}: holds a run already; continue it with --resume, or choose another --out")


def write_run(folder: Path, run: Run, dataset: Dataset) -> None:
    """Begin a run folder; raises CheckpointError where there is already a run in it."""
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "side", "sha256", "group", "cluster"))
        for side in SIDES:
            writer.writerows(
                (item.path.resolve(), item.label, side, item.sha256, item.group, item.cluster)
                for item in dataset.sides[side]
            )
    with (folder / "unreadable.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows((item.path, item.reason) for item in dataset.bad)
    (folder / APPLIED_FIXES).unlink(missing_ok=True)  # of a fit that ended before its first checkpoint
    if run.config.apply:
        (folder / APPLIED_FIXES).write_bytes(run.config.apply.read_bytes())
    replace_run(folder, run)


def replace_run(folder: Path, run: Run) -> None:
    """Write run.json in one step."""
    _replace(folder / "run.json", _RUN.dump_json(run, indent=1).decode())


def read_run(folder: Path) -> Run:
    """Read run.json; raises CheckpointError."""
    return _read(folder / "run.json", _RUN, f"wanted a folder that `trainer fit … --out {folder}` wrote")


def read_split(folder: Path) -> dict[Side, tuple[Picture, ...]]:
    """Return the pictures of every side as they were split for this run."""
    path = folder / "split.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        pictures = [
            (
                row["side"],
                Picture(
                    path=Path(row["path"]),
                    label=row["label"],
                    sha256=row["sha256"],
                    group=row["group"],
                    cluster=row["cluster"],
                ),
            )
            for row in rows
        ]
    except (OSError, KeyError, csv.Error) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fit again") from error
    return {side: tuple(picture for where, picture in pictures if where == side) for side in SIDES}


def read_unreadable(folder: Path) -> tuple[BadFile, ...]:
    """Return the files that were left out when the run began; none for a run that did not record them."""
    path = folder / "unreadable.csv"
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(BadFile(path=Path(row["path"]), reason=row["reason"]) for row in csv.DictReader(file))


def save(folder: Path, name: Name, state: State, tensors: dict[str, Tensor]) -> State:
    """Write tensors and state so that a reader finds either the old checkpoint or the new one, whole."""
    file = f"{name}-{state.epoch:04d}-{state.step:06d}.safetensors"
    previous = _weights_of(folder, name)
    partial = folder / f".{file}"
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial)
    except SafetensorError as error:  # its own type for a full disk
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{partial}: {error}; make room, then continue with --resume") from error
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(folder / file)
    saved = State(**{**vars(state), "weights": file})
    _replace(folder / f"{name}.json", _STATE.dump_json(saved, indent=1).decode())
    if previous is not None and previous != file:
        (folder / previous).unlink(missing_ok=True)
    return saved


def read_state(folder: Path, name: Name) -> State:
    """Read where a run stands, without its tensors; raises CheckpointError."""
    return _read(folder / f"{name}.json", _STATE, "the run stopped before its first checkpoint; fit again")


def load(folder: Path, name: Name) -> tuple[State, dict[str, Tensor]]:
    """Read a checkpoint; raises CheckpointError."""
    state = read_state(folder, name)
    if Path(state.weights).name != state.weights:
        raise CheckpointError(f"{folder / name}.json: weights {state.weights!r} is no file name in this folder")
    path = folder / state.weights
    try:
        return state, load_file(path)
    except Exception as error:  # safetensors and the file system raise several types, all meaning this file
        raise CheckpointError(f"{path}: cannot be read ({error}); fit again") from error


def append_history(folder: Path, row: dict[str, float | int | str], *, before_epoch: int) -> None:
    """Add one line to history.jsonl, dropping lines that a killed run wrote for this epoch already."""
    path = folder / "history.jsonl"
    kept = [line for line in read_history(folder) if int(line["epoch"]) < before_epoch]
    _replace(path, "".join(json.dumps(line) + "\n" for line in [*kept, row]))


def read_history(folder: Path) -> list[dict[str, float | int | str]]:
    """Return the lines of history.jsonl; empty where there is none."""
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best_first(history: list[dict[str, float | int | str]]) -> list[dict[str, float | int | str]]:
    """Return the lines of a history by validation accuracy, among equals by log-loss."""
    return sorted(history, key=lambda row: (-float(row["val_accuracy"]), float(row["val_log_loss"])))


def best_tensors(model: dict[str, Tensor], logits: Tensor) -> dict[str, Tensor]:
    """Return what `best` holds. The report reads the logits: a look at every picture would cost what the probe does."""
    return {**prefixed("model", model), **prefixed("validation", {"logits": logits})}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that a checkpoint gives them: prefix/name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that stand under a prefix, by their own names."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def _weights_of(folder: Path, name: Name) -> str | None:
    path = folder / f"{name}.json"
    return _read(path, _STATE, "fit again").weights if path.exists() else None


def _read(path: Path, adapter: TypeAdapter[Parsed], wanted: str) -> Parsed:
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; {wanted}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{path}: {where}: {problem['msg'].lower()}; {wanted}") from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
