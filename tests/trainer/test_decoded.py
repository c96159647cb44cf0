"""Decoded pictures are kept while a run lasts: the same pixels, each decoded once, and nothing left behind."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundle.preprocess import PreprocessSpec, decode_pixels
from trainer import decoded, runs, train
from trainer.augment import PRESETS
from trainer.config import FitConfig
from trainer.data import Picture
from trainer.decoded import decoded_folder, pixels_of
from trainer.pictures import EvaluationPictures, TimedBatches, TrainingPictures

from .pictures import make_folder

SPEC = PreprocessSpec(resize_px=36, crop_px=32)


def jpegs(root: Path, *, count: int) -> tuple[Picture, ...]:
    """Write JPEGs larger than the DCT-scaled decode needs."""
    generator = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        path = root / f"{number}.jpg"
        Image.fromarray(generator.integers(0, 255, (150, 200, 3), dtype=np.uint8)).save(path)
        pictures.append(Picture(path=path, label="a", sha256=f"{number:064x}"))
    return tuple(pictures)


def test_kept_pictures_give_the_same_samples(tmp_path: Path) -> None:
    """Evaluation and training, first from the file and then from what was kept, equal those without a cache."""
    pictures = jpegs(tmp_path, count=3)
    with decoded_folder(tmp_path) as folder:
        for kept in (None, folder, folder):
            evaluation = EvaluationPictures(pictures, [0] * 3, SPEC, decoded=kept)
            training = TrainingPictures(
                pictures, [0] * 3, SPEC, augmentation=PRESETS["strong"], seed=1, train_px=24, decoded=kept
            )
            found = [evaluation[0][0], *(training[(5, index)][0] for index in range(3))]
            if kept is None:
                wanted = found
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert found[0].shape == (32, 32, 3)
        assert found[1].shape == (24, 24, 3)
        assert len(list(folder.iterdir())) == 3
    assert not folder.exists()


def test_no_picture_of_a_fit_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe, planning, two epochs and their validation together decode each file once; the folder is gone after."""
    data = make_folder(tmp_path / "data")
    (tmp_path / "run" / ".decoded-left-by-a-killed-run").mkdir(parents=True)
    calls: list[bytes] = []

    def count(data: bytes, *, cover_px: int) -> np.ndarray:
        calls.append(data)
        return decode_pixels(data, cover_px=cover_px)

    monkeypatch.setattr(decoded, "decode_pixels", count)
    config = FitConfig(
        backbone="mobilenet_v3_small", weights="none", image_size=32, epochs=2, batch_size=8, time_budget=600
    )
    session = runs.begin(data, tmp_path / "run", config)
    train.fit(session)
    used = {picture.path.read_bytes() for side in ("train", "val") for picture in session.sides[side]}
    assert len(calls) == len(used)
    assert set(calls) == used
    assert not list((tmp_path / "run").glob(".decoded-*"))


def test_many_threads_read_whole_pictures(tmp_path: Path) -> None:
    """Readers that meet on one picture all get it whole, and leave one file."""
    (picture,) = jpegs(tmp_path, count=1)
    wanted = decode_pixels(picture.path.read_bytes(), cover_px=36)
    with decoded_folder(tmp_path) as folder, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: pixels_of(picture, folder, cover_px=36), range(64)))
        assert [path.suffix for path in folder.iterdir()] == [".npy"]
    assert all(np.array_equal(pixels, wanted) for pixels in found)


def test_full_disk_costs_time_not_the_run(tmp_path: Path) -> None:
    """Where too little would stay free, pictures are decoded and nothing is written."""
    (picture,) = jpegs(tmp_path, count=1)
    with decoded_folder(tmp_path) as folder:
        pixels = pixels_of(picture, folder, cover_px=36, spare_bytes=2**62)
        assert pixels.shape == (38, 50, 3)
        assert not list(folder.iterdir())


def test_waiting_is_what_the_reader_waits() -> None:
    """Time inside the loader counts, time between two batches does not."""
    now = [0.0]

    def load():
        for _ in range(3):
            now[0] += 2.0
            yield [torch.zeros(1)]

    batches = TimedBatches(load(), lambda: now[0])
    for _ in batches:
        now[0] += 10.0
    assert batches.waited_seconds == 6.0
