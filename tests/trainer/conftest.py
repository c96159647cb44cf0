"""A run that is trained once for all tests that look at one: tiny, and with labels and names of the worst kind."""

import shutil
from pathlib import Path

import pytest

from trainer import runs, train
from trainer.config import FitConfig

from .pictures import make_folder

HOSTILE = "<img src=x onerror=alert(1)>"
LABELS = (HOSTILE, "a very long label that does not want to end before the page does", 'red | "hot" & {{ 7 * 7 }}')


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch; one file is there twice, one cannot be read."""
    root = tmp_path_factory.mktemp("hostile")
    data = make_folder(root / "data")
    for name, label in zip(("blue", "green", "red"), LABELS, strict=True):
        (data / name).rename(data / label)
    shutil.copy(data / LABELS[2] / "00.png", data / LABELS[2] / "<b>copy.png")
    (data / LABELS[0] / "<i>broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    config = FitConfig(
        backbone="mobilenet_v3_small", weights="none", image_size=32, epochs=1, batch_size=16, val_share=0.4
    )
    train.fit(runs.begin(data, root / "run", config))
    return root / "run"
