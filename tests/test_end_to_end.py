"""The demo's path, small: pictures, fit, export, a server process, a client; each part as a person would start it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.pictures import make_folder

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def command(*words: object) -> str:
    """Run a command to its end and return its stdout."""
    line = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_server_answers_what_predict_answers(tmp_path: Path) -> None:
    """A network with the default weights learns three colours; server and `trainer predict` give the same scores."""
    data = make_folder(tmp_path / "data", count=12)
    options = ("--image-size", "64", "--epochs", "1", "--augment", "light")
    command("trainer", "fit", data, "--out", tmp_path / "run", *options)
    command("trainer", "export", tmp_path / "run", "--to", tmp_path / "models", "--name", "colours")
    pictures = sorted(data.rglob("*.png"))
    predicted = command("trainer", "predict", tmp_path / "models" / "colours" / "1", *pictures, "--json")
    wanted = [json.loads(line)["predictions"] for line in predicted.splitlines()]

    line = [sys.executable, "-m", "serving", "run", str(tmp_path / "models"), "--address", "127.0.0.1:0"]
    line += ["--http-address", "off"]
    with subprocess.Popen(
        [*line, "--log-format", "json"], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as server:
        try:
            assert server.stderr is not None
            events = (json.loads(text) for text in server.stderr)
            port = next(event["port"] for event in events if event["event"] == "SERVING")
            served = command("serving", "classify", *pictures, "--address", f"127.0.0.1:{port}", "--json")
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()
    found = [record["predictions"] for record in json.loads(served)]
    assert len(found) == len(wanted) == 36
    for here, there in zip(found, wanted, strict=True):
        assert [one["label"] for one in here] == [one["label"] for one in there]
        assert [one["score"] for one in here] == pytest.approx([one["score"] for one in there], abs=1e-6)
    right = sum(here[0]["label"] == path.parent.name for here, path in zip(found, pictures, strict=True))
    assert right >= 33
