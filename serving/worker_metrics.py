"""The process_* metrics of several workers: memory, CPU time and descriptors of them all, and of what supervises them.

Each worker asks the system at every scrape, so that any of them tells the same. Linux only, as `workers` is.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import Collector

_CPU: Final = "process_cpu_seconds_total"
_START: Final = "process_start_time_seconds"
_PROC: Final = Path("/proc")


class CrewCollector(Collector):
    """Sums over a process and its children; the start is the process's own."""

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """Yield the sums."""
        merged: dict[str, Metric] = {}
        sums: dict[str, float] = {_CPU: self._buried_s()}
        for pid in (self._supervisor, *self._children()):
            for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                (sample,) = family.samples
                merged.setdefault(sample.name, family)
                if sample.name != _START or pid == self._supervisor:
                    sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        for name, family in merged.items():
            family.samples = [family.samples[0]._replace(value=sums[name])]
            yield family

    def _children(self) -> list[int]:
        found = []
        for listing in _PROC.glob(f"{self._supervisor}/task/*/children"):
            with suppress(OSError):  # a thread that has ended since
                found += [int(pid) for pid in listing.read_text().split()]
        return found

    def _buried_s(self) -> float:
        """Return the CPU seconds of children that ended: without them the sum would fall when a worker dies."""
        try:
            fields = (_PROC / str(self._supervisor) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")  # proc(5): cutime, cstime
