"""Run the main job end to end, as a person would, with the two commands `trainer` and `serving`.

`python -m demo.run` uses 5,000 handwritten digits; `python -m demo.run FOLDER` your own folder of class folders.
Writes runs/NAME and models/NAME; the server runs as its own process on a free port and is stopped at the end.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.server_process import running_server
from bundle.repository import versions
from demo import digits
from trainer.checkpoint import read_split

Item = TypeVar("Item")
console = Console(soft_wrap=True, highlight=False)
BIN = Path(sys.executable).parent
DIGITS_OPTIONS = (  # 28-pixel digits: small input, no flips: minutes instead of an hour
    *("--image-size", "64", "--epochs", "4", "--batch-size", "64"),
    *("--lr", "2e-3", "--body-lr-factor", "1"),  # pen strokes are far from ImageNet
    *("--batchnorm", "train"),  # 4,000 pictures are enough for statistics of their own
    *("--augment", "none", "--rotate-deg", "10", "--translate", "0.08"),
)
DIGITS_EXPECTED = 0.97  # of the test side
SHOWN = 10
CLASSIFIED = 1000  # at most: they go over one command line


def main() -> None:
    """Train, prove, serve, classify."""
    started = time.monotonic()
    own = sys.argv[1:]
    data = Path(own[0]) if own else digits.prepare(Path(".cache/digits"), Path(".cache/wheels"))
    name = re.sub(r"[^A-Za-z0-9._-]", "-", data.resolve().name).lstrip("._-") or "mine"
    run, options = Path("runs") / f"demo-{name}", () if own else DIGITS_OPTIONS
    if run.exists():
        shutil.rmtree(run)
    _step("trainer", "data", "check", str(data), go_on_after=1)  # 1: found problems, and named them
    _step("trainer", "fit", str(data), "--out", str(run), *options)
    _step("trainer", "evaluate", str(run), str(data))
    _step("trainer", "export", str(run), "--to", "models", "--name", name)
    with _server(Path("models")) as address:
        hits, total = _classify(run, data.resolve(), name, address)
    console.print(f"{hits} of {total} held-out pictures right over gRPC, {time.monotonic() - started:.0f} s in all")
    if not own and hits < DIGITS_EXPECTED * total:
        sys.exit(f"wanted at least {DIGITS_EXPECTED:.0%} of the digits right")
    newest = versions(Path("models"), name)[-1]
    console.print(f"wrote {run} and models/{name}/{newest}; next: {os.path.relpath(BIN / 'serving')} run models")


def _step(*command: str, go_on_after: int = 0) -> None:
    console.rule(" ".join(command), align="left")
    done = subprocess.run([str(BIN / command[0]), *command[1:]], check=False)
    if done.returncode not in (0, go_on_after):
        sys.exit(done.returncode)


@contextmanager
def _server(models: Path) -> Iterator[str]:
    """Yield the address of a server in its own process; SIGTERM at the end, which must exit 0."""
    console.rule(f"serving run {models}", align="left")
    with running_server(models) as server:
        console.print(f"SERVING on port {server.port} after {server.start_s} s")
        yield server.address
        code = server.stop()
        console.print(f"server stopped, exit code {code}")
    if code:
        sys.exit(code)


def _classify(run: Path, data: Path, name: str, address: str) -> tuple[int, int]:
    """Classify held-out pictures through the real client; print a few, return how many of how many were right."""
    sides = read_split(run)
    pictures = _spread(sides["test"] or sides["val"], CLASSIFIED)
    command = [str(BIN / "serving"), "classify", "--address", address, "--model", name, "--top-k", "3", "--json"]
    done = subprocess.run(
        [*command, *(str(item.path) for item in pictures)], capture_output=True, text=True, check=True
    )
    answers = [record["predictions"] for record in json.loads(done.stdout)]
    table = Table("picture", "truth", "top 3", "score")
    for item, answer in _spread(list(zip(pictures, answers, strict=True)), SHOWN):
        labels = ", ".join(prediction["label"] for prediction in answer)
        table.add_row(os.path.relpath(item.path, data), item.label, labels, f"{answer[0]['score']:.4f}")
    console.print(table)
    hits = sum(answer[0]["label"] == item.label for item, answer in zip(pictures, answers, strict=True))
    return hits, len(pictures)


def _spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    """Return at most count items, evenly spread."""
    return [items[place * len(items) // count] for place in range(count)] if len(items) > count else items


if __name__ == "__main__":
    main()
