"""A small data folder that a network can learn in seconds: noisy colours, one a class."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 50)}


def make_folder(
    root: Path, *, count: int = 12, side: int = 40, labels: tuple[str, ...] = ("blue", "green", "red")
) -> Path:
    """Write root/<label>/<number>.png, `count` different pictures a class."""
    generator = np.random.default_rng(0)
    for label in labels:
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = generator.integers(-40, 40, (side, side + 8, 3))
            pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:02d}.png")
    return root
