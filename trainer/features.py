"""Features of pictures, computed once for each network and kept in the user's cache folder."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.classifier import Backbone
from trainer.data import Picture
from trainer.network import Deployed, Device, all_features
from trainer.pictures import EvaluationPictures, evaluation_loader
from trainer.session import EVALUATION_BATCH

Features = NDArray[np.float32]


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/calotype/features, where that is not set ~/.cache/calotype/features."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calotype" / "features"


def cached_features(model: Deployed, backbone: Backbone, device: Device, *, pictures: tuple[Picture, ...]) -> Features:
    """Return features (N, F) in the order of `pictures`; from the cache where the same network saw the same files."""
    unique = {picture.sha256: picture for picture in pictures}
    hashes = sorted(unique)
    path = cache_folder() / f"{_key(backbone, hashes)}.npy"
    features = _read(path, len(hashes))
    if features is None:
        ordered = tuple(unique[sha256] for sha256 in hashes)
        loader = evaluation_loader(
            EvaluationPictures(ordered, [0] * len(ordered), backbone.spec), batch_size=EVALUATION_BATCH, workers=0
        )
        features = all_features(model, loader, device)[0].numpy()
        _write(path, features)
    place = {sha256: row for row, sha256 in enumerate(hashes)}
    found: Features = features[[place[picture.sha256] for picture in pictures]]
    return found


def _key(backbone: Backbone, hashes: list[str]) -> str:
    """Hash what decides features: every tensor below the head, the preprocessing, and the files' contents."""
    digest = hashlib.sha256(json.dumps([asdict(backbone.spec), backbone.mean, backbone.std, hashes]).encode())
    head = {id(tensor) for tensor in backbone.model.head.state_dict(keep_vars=True).values()}
    for name, tensor in backbone.model.state_dict(keep_vars=True).items():
        if id(tensor) not in head:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, count: int) -> Features | None:
    try:
        found: Features = np.load(path, allow_pickle=False)
    except (OSError, ValueError):  # not there, or damaged: computed anew
        return None
    return found if found.ndim == 2 and len(found) == count and found.dtype == np.float32 else None


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.save(file, features, allow_pickle=False)
    partial.replace(path)
