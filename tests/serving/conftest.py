"""Fixtures that several files share."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not: `import tiny_bundle`

import tiny_bundle

os.environ["CALOTYPE_HTTP_ADDRESS"] = "off"  # for processes: port 8080 may be another's


@pytest.fixture
def models(tmp_path):
    """A folder with one model, `colours`, version 1."""
    tiny_bundle.write(tmp_path / "models")
    return tmp_path / "models"
