"""Record a run in MLflow: its settings, the figures of every epoch, its report, and at export its bundle.

Written once, after the fit, from the run folder: a tracking server that fails costs no training, and a run that was
resumed is told whole. Where to is MLflow's own business: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer import checkpoint
from trainer.errors import ConfigError
from trainer.progress import Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_NAME: Final = "mlflow.json"  # in the run folder: the id under which export adds the bundle
_VALUE_CHARACTERS: Final = 500  # what every MLflow store takes as a parameter


def require_mlflow() -> None:
    """Raise ConfigError where MLflow is not installed: before training, not after it."""
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError('--track mlflow: mlflow is not installed; add it with `pip install "calotype[mlflow]"`')


def track_fit(run_folder: Path) -> bool:
    """Record a fitted run, again where it was recorded before it was resumed; say in one line why not."""
    return _try(lambda: _track_fit(run_folder), f"the run in {run_folder} is whole")


def track_export(run_folder: Path, bundle_folder: Path) -> bool:
    """Add a bundle to the record of its run; False where the run has none, or where that failed."""
    if not (run_folder / RECORD_NAME).exists():
        return False
    return _try(lambda: _track_export(run_folder, bundle_folder), f"the bundle in {bundle_folder} is whole")


def _track_fit(run_folder: Path) -> None:
    from mlflow.entities import Metric, Param

    client, now_ms = _client(), int(time.time() * 1000)
    run, state = checkpoint.read_run(run_folder), checkpoint.read_state(run_folder, "best")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "calotype")
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name)
    run_id = client.create_run(experiment, run_name=run_folder.resolve().name).info.run_id
    settings = {**vars(run.config), "data": run.data, "data_fingerprint": run.provenance.data_fingerprint}
    params = [Param(key, str(value)[:_VALUE_CHARACTERS]) for key, value in settings.items()]
    scores = {"probe": state.probe, "best": state.best}
    metrics = [
        Metric(f"{stage}_val_{part}", float(value), now_ms, 0)
        for stage, score in scores.items()
        if score
        for part, value in vars(score).items()
    ]
    client.log_batch(run_id, metrics=metrics, params=params)
    for row in checkpoint.read_history(run_folder):
        epoch = int(row.pop("epoch"))
        client.log_batch(run_id, metrics=[Metric(key, float(value), now_ms, epoch) for key, value in row.items()])
    for file in ("report.html", "run.json", "split.csv"):
        if (run_folder / file).exists():
            client.log_artifact(run_id, str(run_folder / file))
    client.set_terminated(run_id)
    (run_folder / RECORD_NAME).write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")


def _track_export(run_folder: Path, bundle_folder: Path) -> None:
    run_id = str(json.loads((run_folder / RECORD_NAME).read_text(encoding="utf-8"))["run_id"])
    _client().log_artifacts(run_id, str(bundle_folder), f"bundle/{bundle_folder.name}")


def _client() -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked us to tell its makers
    from mlflow import MlflowClient

    return MlflowClient()


def _try(record: Callable[[], None], what_stands: str) -> bool:
    try:
        record()
    except Exception as error:  # noqa: BLE001 -- a dozen types of MLflow, HTTP and SQL; hours of training must not be lost
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        Progress().say(f"not recorded in MLflow ({reason}); {what_stands}")
        return False
    return True
