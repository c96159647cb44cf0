"""onnxruntime tells nobody about this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ("bundle.runtime", "bundle.bound", "serving.loading", "serving.plan_search", "trainer.portable")
MODULES += ("trainer.quantize", "benchmarks.inprocess")


@pytest.mark.parametrize("module", MODULES)
def test_what_imports_onnxruntime_keeps_it_quiet(tmp_path, module):
    """Else its first import leaves a device's id and a database of events in the home folder, and asks the network."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, timeout=60, check=True)
    assert list(tmp_path.rglob("*onnxruntime*")) == []
