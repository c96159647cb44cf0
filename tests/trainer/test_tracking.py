"""A run told to MLflow, into a store in a file."""

import importlib.util
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from trainer import runs, tracking, train
from trainer.cli import app
from trainer.config import FitConfig
from trainer.errors import ConfigError

from .pictures import make_folder


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Return a client of an empty store, which the trainer writes to as well."""
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a local store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowClient()


def files_of(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    """Return the names of all artifacts in a folder."""
    return {item.path for item in client.list_artifacts(run_id, folder)}


def test_run_and_bundle_are_recorded(client: MlflowClient, tmp_path: Path) -> None:
    """Settings, figures of every epoch, report and bundle stand under one MLflow run."""
    data = make_folder(tmp_path / "data")
    words = ["fit", str(data), "--out", str(tmp_path / "run"), "--track", "mlflow", "--epochs", "2"]
    words += ["--backbone", "mobilenet_v3_small", "--weights", "none", "--image-size", "32"]
    fitted = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ", recorded in MLflow; next:" in fitted.stdout.replace("\n", " ")
    run_id = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["backbone"] == "mobilenet_v3_small"
    assert run.data.params["epochs"] == "2"
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    recorded = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]
    assert sorted(recorded) == [(row["epoch"], row["loss"]) for row in rows]
    assert {"report.html", "run.json", "split.csv"} <= files_of(client, run_id)
    words = ["export", str(tmp_path / "run"), "--name", "m", "--to", str(tmp_path / "models"), "--onnx", "--no-int8"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert {"bundle/1/bundle.json", "bundle/1/model.onnx", "bundle/1/golden"} <= files_of(client, run_id, "bundle/1")


def test_failing_store_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says that nothing was recorded, and that the run is whole."""
    monkeypatch.setattr(tracking, "_client", lambda: MlflowClient("nonsense://store"))
    run = tmp_path / "run"
    config = FitConfig(backbone="mobilenet_v3_small", weights="none", image_size=32, epochs=0)
    train.fit(runs.begin(make_folder(tmp_path / "data"), run, config))
    assert not tracking.track_fit(run)
    assert "not recorded in MLflow" in (told := " ".join(capsys.readouterr().err.split()))
    assert told.endswith("is whole")
    assert not (run / tracking.RECORD_NAME).exists()


def test_absent_mlflow_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra."""
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(ConfigError, match=r"calotype\[mlflow\]"):
        tracking.require_mlflow()
