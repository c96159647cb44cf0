"""Near duplicates: copies are found, other pictures are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from trainer import duplicates
from trainer.data import SIDES, load_dataset
from trainer.duplicates import components, near_pairs
from trainer.looks import Look, read_file

SHARES = {"seed": 0, "val_share": 0.3, "test_share": 0.3, "max_bad": 0.0}


def scene(seed: int, side: int = 160) -> Image.Image:
    """Return a picture with structure: a few soft random shapes in random colours."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def look_of(picture: Image.Image, folder: Path, *, quality: int = 95) -> Look:
    """Save as JPEG, and read as every file is read."""
    picture.save(folder / "one.jpg", quality=quality)
    found = read_file(folder / "one.jpg")
    assert not isinstance(found, str)
    return found.look


@pytest.mark.parametrize(
    ("copy", "quality"),
    [
        (lambda picture: picture, 30),
        (lambda picture: picture.resize((80, 80)), 90),
        (lambda picture: ImageEnhance.Brightness(picture).enhance(0.9), 90),
    ],
    ids=["compressed", "half the size", "darker"],
)
def test_copy_is_found(tmp_path: Path, copy: object, quality: int) -> None:
    """And no other of twenty pictures."""
    looks = [look_of(scene(seed), tmp_path) for seed in range(20)]
    assert callable(copy)
    looks.append(look_of(copy(scene(7)), tmp_path, quality=quality))
    assert near_pairs(looks) == [(7, 20)]


def test_same_structure_in_other_colours_is_another_picture(tmp_path: Path) -> None:
    """A class may be told by its colour alone."""
    red, green, blue = scene(1).split()
    turned = Image.merge("RGB", (blue, red, green))
    assert near_pairs([look_of(scene(1), tmp_path), look_of(turned, tmp_path)]) == []


def test_tinted_copy_is_another_picture(tmp_path: Path) -> None:
    """A lamp that is red is not one that is blue, though each channel has the same structure."""
    soft = np.asarray(scene(1)).astype(np.int16) // 4
    red, blue = (Image.fromarray((soft + tint).astype(np.uint8)) for tint in ([90, 10, 10], [10, 10, 90]))
    assert near_pairs([look_of(red, tmp_path), look_of(blue, tmp_path)]) == []


def test_flat_pictures_are_not_compared(tmp_path: Path) -> None:
    """Their hash is noise; the data check lists them as what they are."""
    looks = [look_of(Image.new("RGB", (64, 64), (90, 90, shade)), tmp_path) for shade in (90, 91)]
    assert near_pairs(looks) == []


def test_agreeing_hashes_cost_bounded_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound of 2 thumbnails a row, twenty equal looks still end in one cluster."""
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 2)
    pairs = near_pairs([look_of(scene(3), tmp_path)] * 20)
    assert len(pairs) <= 40
    assert set(components(20, pairs)) == {0}


def test_links_make_clusters() -> None:
    """0-1-2 and 3-4; 5 is alone."""
    numbers = components(6, [(0, 1), (2, 1), (4, 3)])
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[3] == numbers[4]
    assert len(set(numbers)) == 3


@pytest.mark.parametrize("seed", range(4))
def test_split_keeps_copies_together(tmp_path: Path, seed: int) -> None:
    """Of twelve scenes in three saved sizes each, none stands on two sides."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            for side in (160, 120, 90):
                picture = scene(number + 100 * (label == "b")).resize((side, side))
                picture.save(tmp_path / label / f"{number}-{side}.jpg", quality=85)
    dataset = load_dataset(tmp_path, **{**SHARES, "seed": seed})
    where = {}
    for side in SIDES:
        for picture in dataset.sides[side]:
            where.setdefault((picture.label, picture.path.name.split("-")[0]), set()).add(side)
    assert len(where) == 12
    assert all(len(sides) == 1 for sides in where.values())


def test_too_large_a_file_is_not_read_whole(tmp_path: Path) -> None:
    """One byte over the limit is enough to refuse it."""
    sparse = tmp_path / "huge.jpg"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    assert "wanted at most" in str(read_file(sparse))


def test_missing_file_is_a_reason(tmp_path: Path) -> None:
    """So is what is no file at all."""
    assert read_file(tmp_path / "none.jpg") == "no such file"
    assert read_file(tmp_path) == "not a regular file"
    buffer = io.BytesIO()
    scene(0).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:200])
    assert isinstance(read_file(tmp_path / "cut.png"), str)
