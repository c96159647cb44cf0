"""One training in several processes, as `torchrun -m trainer fit …` starts them: who reads which pictures, who writes.

`--batch-size` is the global batch whatever the number of processes: each trains on its share of the very batch that one
process would see, and gradients are weighted by pictures. The first process alone touches the run folder; what it reads
or decides reaches the others through `from_first`, so that no folder but the pictures' needs to be shared.
Where BatchNorm follows the pictures it sees the global batch on GPUs (SyncBatchNorm); on CPUs, for which torch has
none, each process normalises by its own share and the first one's running statistics are kept. Knows nothing of stages
and epochs.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar, cast

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bundle.errors import CalotypeError
from trainer.errors import ConfigError, Interrupted, PeerError, TrainerError

TIMEOUT: Final = timedelta(minutes=30)  # the others wait so long for the first one to look at every file
Value = TypeVar("Value")
Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of a training; by default the only one. Every method works for one process too."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # of them on this machine

    @property
    def is_first(self) -> bool:
        """Say whether this process writes and speaks."""
        return self.rank == 0

    def threads(self, wanted: int) -> int:
        """Return a process's CPU threads: what was asked for, or its part of what the machine gives."""
        return wanted or max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def share(self, batch: Sequence[Key], *, with_neighbour: bool = False) -> list[Key]:
        """Return this process's part of a global batch, never empty; `weight` says what it counts.

        `with_neighbour` puts the picture before it in front (before the first comes the last): mixup and cutmix mix
        neighbours, and so mix the same pairs whatever the number of processes.
        """
        if self.size == 1:
            return list(batch)
        start, stop = self._bounds(len(batch))
        if start == stop:
            start, stop = (start, start + 1) if start < len(batch) else (len(batch) - 1, len(batch))
        return [*([batch[start - 1]] if with_neighbour else []), *batch[start:stop]]

    def weight(self, batch_count: int) -> float:
        """Return the factor by which the mean loss of a share enters DDP's plain mean over the processes."""
        start, stop = self._bounds(batch_count)
        return (stop - start) * self.size / batch_count

    def places(self, count: int) -> list[int]:
        """Return the places 0..count-1 that this process evaluates, equally many in each; `gathered` drops the rest."""
        each = -(-count // self.size)
        return [min(place, count - 1) for place in range(self.rank * each, (self.rank + 1) * each)]

    def gathered(self, rows: Tensor, *, count: int) -> Tensor:
        """Return the CPU rows of all `places` in order, (count, …), in every process."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)[:count]

    def mean(self, value: float) -> float:
        """Return the mean of a number over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.size

    def any(self, is_so: bool) -> bool:
        """Say whether something is so in at least one process."""
        return self.mean(float(is_so)) > 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Return in every process what `make` returns in the first; PeerError elsewhere where it raises there."""
        if self.size == 1:
            return make()
        said: list[object] = [None, False]
        if not self.is_first:
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
            if not said[1]:
                raise PeerError("the first process of this training failed; its message says why")
            return cast("Value", said[0])
        try:
            said = [make(), True]
        finally:
            dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return cast("Value", said[0])

    def align(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers, in place."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor.detach(), src=0)

    def wrap(self, network: nn.Module, *, frozen_batchnorm: bool) -> nn.Module:
        """Return a network whose backward pass averages gradients over the processes; its parameters stay the same."""
        if self.size == 1:
            return network
        if not frozen_batchnorm and next(network.parameters()).is_cuda:
            network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # timm's own norms too
        return DistributedDataParallel(network)

    def _bounds(self, count: int) -> tuple[int, int]:
        return self.rank * count // self.size, (self.rank + 1) * count // self.size


@dataclass(frozen=True, kw_only=True)
class SharedBatches:
    """This process's share of every global batch; a batch sampler for a DataLoader."""

    batches: Iterable[list[tuple[int, int]]]
    world: World
    with_neighbour: bool

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield self.world.share(batch, with_neighbour=self.with_neighbour)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, for the block; the only process of its world without torchrun.

    `device` is what `--device` says. Raises ConfigError where there are fewer GPUs than processes, TrainerError where
    another process died. What all processes raise alike, only the first one tells: the others exit silently.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield World()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world = World(rank=int(os.environ["RANK"]), size=size, local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        if torch.cuda.device_count() < world.local_size:
            raise ConfigError(
                f"{world.local_size} processes on this machine, {torch.cuda.device_count()} GPUs; "
                f"use --nproc-per-node {torch.cuda.device_count()}, or --device cpu"
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield world
    except (Interrupted, PeerError):
        if world.is_first:
            raise
        sys.exit(0)  # torchrun ends all at the first failure, and the first process has not told its own yet
    except CalotypeError:
        raise
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        raise TrainerError(
            f"process {world.rank} of {world.size}: another process of this training ended; see its message, "
            "then start all of them again with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    """gloo has no type of its own for a peer that is gone: it raises RuntimeError and names itself."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
