"""The real onnxruntime-gpu on a machine without a GPU; `make test-cuda-absent` makes the environment that it wants."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_process import ROOT
from tiny_bundle import picture

from serving.client import Client

PYTHON = ROOT / ".venv-gpu" / "bin" / "python"
PATIENCE_S = 60

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with onnxruntime-gpu: `make test-cuda-absent`"),
    pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU"),
]


@contextmanager
def serving(models, *options):
    command = [PYTHON, "-m", "serving", "run", models, "--address", "127.0.0.1:0", "--log-format", "json", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_environment_has_an_onnxruntime_for_cuda():
    """Or what follows would prove nothing."""
    code = "import onnxruntime; print(onnxruntime.get_available_providers())"
    assert "CUDAExecutionProvider" in subprocess.run([PYTHON, "-c", code], capture_output=True, text=True).stdout


def test_cuda_asked_for_by_name_ends_the_start(models):
    """It fails closed: one line, exit code 1, nothing served by the CPU."""
    with serving(models, "--provider", "cuda") as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "asked for CUDA, onnxruntime fell back to the CPU" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out == ""


def test_auto_serves_on_the_cpu_and_says_so(models):
    """In the log, and to whoever asks for the model."""
    with serving(models, "--provider", "auto") as process:
        # onnxruntime's own lines are no JSON
        entries = (json.loads(line) for line in process.stderr if line.startswith("{"))
        told = []
        while not told or told[-1]["event"] != "SERVING":
            told.append(next(entries))
        with Client(f"127.0.0.1:{told[-1]['port']}") as client:
            answer = client.classify([picture("green")])
            assert answer.results[0].predictions[0].label == "green"
            assert [model.provider for model in client.models()] == ["cpu"]
    assert any(entry["event"].startswith("CUDA would not start") for entry in told)
