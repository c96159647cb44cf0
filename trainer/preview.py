"""A contact sheet of augmented pictures: what the network really sees in training."""

from pathlib import Path
from typing import Final

from PIL import Image

from bundle.preprocess import PreprocessSpec, load_input
from trainer.augment import resolve
from trainer.config import AugmentConfig, FitConfig
from trainer.data import Picture, load_dataset
from trainer.pictures import TrainingPictures

COLUMNS: Final = 8  # the first as evaluation sees it, then augmented ones
ROWS: Final = 6
_GAP_PX: Final = 4


def write_preview(data: Path, config: AugmentConfig, target: Path) -> None:
    """Write a PNG: one picture a row, each time augmented anew. Mixing of pairs is not shown."""
    defaults = FitConfig()
    dataset = load_dataset(data, seed=0, val_share=defaults.val_share, test_share=defaults.test_share, max_bad=1.0)
    contact_sheet(dataset.sides["train"], config).save(target, format="PNG")  # whatever its name


def contact_sheet(pictures: tuple[Picture, ...], config: AugmentConfig) -> Image.Image:
    """Return up to six training pictures, one a row: as they are first, then seven times augmented."""
    chosen = pictures[:: max(1, len(pictures) // ROWS)][:ROWS]
    spec = PreprocessSpec(resize_px=146, crop_px=128)
    samples = TrainingPictures(chosen, [0] * len(chosen), spec, augmentation=resolve(config), seed=0)
    pitch = spec.crop_px + _GAP_PX
    sheet = Image.new("RGB", (COLUMNS * pitch + _GAP_PX, len(chosen) * pitch + _GAP_PX), "white")
    for row, picture in enumerate(chosen):
        plain = load_input(picture.path.read_bytes(), spec)
        augmented = [samples[(epoch, row)][0].numpy() for epoch in range(COLUMNS - 1)]
        for column, pixels in enumerate([plain, *augmented]):
            sheet.paste(Image.fromarray(pixels), (_GAP_PX + column * pitch, _GAP_PX + row * pitch))
    return sheet
