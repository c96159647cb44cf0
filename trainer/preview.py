"""A contact sheet of augmented pictures: what the network really sees in training."""

from pathlib import Path
from typing import Final

import torch
from PIL import Image

from bundle.preprocess import PreprocessSpec
from trainer.augment import resolve
from trainer.config import AugmentConfig, FitConfig
from trainer.data import load_dataset
from trainer.pictures import TrainingPictures

COLUMNS: Final = 8  # the first as it is in evaluation size, then augmented ones
ROWS: Final = 6
_GAP_PX: Final = 4


def write_preview(data: Path, config: AugmentConfig, target: Path) -> None:
    """Write a PNG: one picture a row, each time augmented anew. Mixing of pairs is not shown."""
    defaults = FitConfig()
    dataset = load_dataset(data, seed=0, val_share=defaults.val_share, test_share=defaults.test_share, max_bad=1.0)
    pictures = dataset.sides["train"]
    chosen = pictures[:: max(1, len(pictures) // ROWS)][:ROWS]
    spec = PreprocessSpec(resize_px=146, crop_px=128)
    samples = TrainingPictures(chosen, [0] * len(chosen), spec, augmentation=resolve(config), seed=0)
    pitch = spec.crop_px + _GAP_PX
    sheet = Image.new("RGB", (COLUMNS * pitch + _GAP_PX, len(chosen) * pitch + _GAP_PX), "white")
    for row in range(len(chosen)):
        for column in range(COLUMNS):
            tensor, _ = samples[(column, row)]
            tile = Image.fromarray(tensor.to(torch.uint8).numpy())
            sheet.paste(tile, (_GAP_PX + column * pitch, _GAP_PX + row * pitch))
    sheet.save(target, format="PNG")  # whatever its name
