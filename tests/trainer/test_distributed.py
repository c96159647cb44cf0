"""Several processes train what one would: the same pictures, loss and weights, into one run folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer import runs, train
from trainer.config import FitConfig
from trainer.distributed import World
from trainer.errors import ConfigError

from .pictures import make_folder

# No dropout, BatchNorm frozen: what is left must not depend on how many processes share a batch. 24 training pictures
# in batches of 5 make odd shares; "strong" mixes neighbours across the border between two processes.
CONFIG = FitConfig(
    backbone="resnet18",
    weights="none",
    image_size=32,
    batch_size=5,
    lr=1e-4,
    augment="strong",
    batchnorm="frozen",
    threads=1,
    checkpoint_every=1,
    epochs=2,
)
OPTIONS = [
    word
    for part in fields(CONFIG)
    if getattr(CONFIG, part.name) != part.default
    for word in (f"--{part.name.replace('_', '-')}", str(getattr(CONFIG, part.name)))
]


@contextmanager
def two_processes(data: Path, out: Path, *more: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a fit with torchrun; whatever happens, nothing is left running."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "trainer", "fit", str(data), "--out", str(out), *OPTIONS, *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def history(run: Path) -> list[dict[str, float]]:
    """Return the figures of every epoch."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the last checkpoint: weights, running average and optimizer."""
    return load_file(run / json.loads((run / "last.json").read_text())["weights"])


def wait_for_step(run: Path, process: "subprocess.Popen[str]", *, epoch: int, step: int) -> None:
    """Return once the run's last checkpoint stands at or after a step."""
    while process.poll() is None:
        if (run / "last.json").exists():
            state = json.loads((run / "last.json").read_text())
            if (state["epoch"], state["step"]) >= (epoch, step):
                return


def workers_of(process: "subprocess.Popen[str]") -> dict[int, int]:
    """Return the process ids of torchrun's children, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in entry
        )
        ranks[int(environment.get("RANK", "-1"))] = int(child)
    return ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures to train on, 6 to validate."""
    return make_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train.fit(runs.begin(data, run, CONFIG))
    return run


def assert_equal_runs(run: Path, alone: Path) -> None:
    """Compare the loss curve, the validation scores and every tensor."""
    for ours, theirs in zip(history(run), history(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    ours, theirs = final_weights(run), final_weights(alone)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not name.startswith("optimizer"):
            assert torch.allclose(tensor, theirs[name], rtol=1e-3, atol=2e-5), name


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler on this machine")
def test_two_compiled_processes_train_what_one_plain_one_does(data: Path, alone: Path, tmp_path: Path) -> None:
    """torch.compile around DistributedDataParallel: gradients are still exchanged, and the rest is rounding."""
    with two_processes(data, tmp_path / "run", "--compile") as process:
        _, err = process.communicate(timeout=540)
    assert process.returncode == 0, err
    assert_equal_runs(tmp_path / "run", alone)


def test_two_processes_train_what_one_trains(data: Path, alone: Path, tmp_path: Path) -> None:
    """At the same global batch the loss curve and the weights agree, and the run folder holds the same files."""
    with two_processes(data, tmp_path / "run") as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.count("kept the") == 1
    assert_equal_runs(tmp_path / "run", alone)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names - {"report.html"} == {path.name for path in alone.iterdir()}  # the command's work, not the fit's
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_run_of_two_processes_is_ended_by_sigterm_and_resumed_by_one(data: Path, alone: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun stops both between two steps; one process ends what two began."""
    run = tmp_path / "run"
    with two_processes(data, run) as process:
        wait_for_step(run, process, epoch=0, step=2)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert stderr.count("interrupted; continue with") == 1
    state = json.loads((run / "last.json").read_text())
    assert (0, 2) <= (state["epoch"], state["step"]) < (2, 0)
    train.fit(runs.resume(run))
    assert_equal_runs(run, alone)


def test_death_of_one_process_ends_the_other_with_a_message(data: Path, tmp_path: Path) -> None:
    """No process waits for one that was killed."""
    with two_processes(data, tmp_path / "run", "--epochs", "200") as process:
        wait_for_step(tmp_path / "run", process, epoch=0, step=2)
        os.kill(workers_of(process)[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "process 0 of 2: another process of this training ended" in stderr


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_the_batch(count: int, size: int) -> None:
    """The shares that count are the global batch in its order, and their weights make DDP's mean the batch's own."""
    batch = list(range(count))
    worlds = [World(rank=rank, size=size) for rank in range(size)]
    shares = [world.share(batch) for world in worlds]
    counting = [share for world, share in zip(worlds, shares, strict=True) if world.weight(count) > 0]
    assert list(chain.from_iterable(counting)) == batch
    assert all(shares)
    means = [sum(share) / len(share) for share in shares]
    weighted = sum(world.weight(count) * mean for world, mean in zip(worlds, means, strict=True)) / size
    assert weighted == pytest.approx(sum(batch) / count)


def test_neighbour_is_the_picture_before() -> None:
    """Mixing pairs every picture with the one before it, and the first with the last."""
    worlds = [World(rank=rank, size=2) for rank in range(2)]
    assert [world.share([0, 1, 2, 3, 4], with_neighbour=True) for world in worlds] == [[4, 0, 1], [1, 2, 3, 4]]


@pytest.mark.parametrize(("count", "size"), [(1, 3), (6, 2), (7, 3)])
def test_every_picture_is_evaluated(count: int, size: int) -> None:
    """Equally many places in every process, all of them in order; what is beyond is dropped."""
    places = [World(rank=rank, size=size).places(count) for rank in range(size)]
    assert len({len(part) for part in places}) == 1
    assert list(chain.from_iterable(places))[:count] == list(range(count))


class Claimed(World):
    """Says that there are two processes, and is alone: enough for what is refused before they talk."""

    def from_first(self, decide):  # type: ignore[no-untyped-def, override]
        return decide()


def test_what_is_for_one_process_is_refused_at_the_start_and_at_resume(tmp_path: Path) -> None:
    """Clocks and candidates on disk decide there: two processes would decide differently and wait for ever."""
    data, run = make_folder(tmp_path / "data", count=10), tmp_path / "run"
    config = replace(CONFIG, accumulate=2)
    with pytest.raises(ConfigError, match="for one process"):
        runs.begin(data, run, config, world=Claimed(size=2))
    assert not run.exists()
    runs.begin(data, run, config)
    with pytest.raises(ConfigError, match="for one process"):
        runs.resume(run, world=Claimed(size=2))
