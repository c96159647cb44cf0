"""Does a server leak? Run one for a while under ugly traffic, and compare memory, descriptors and threads.

`make soak` runs 20 minutes with a small model made here, of which a new version comes every minute; MODELS=folder and
SOAK_MINUTES=n change that. Exit 1 where resident memory grew by more than 20 MB after the warm-up, a descriptor or a
thread is left over, an answer was wrong, or the server's log tells of an error that nobody foresaw.
"""

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import grpc
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.server_process import ServerProcess, running_server
from benchmarks.soak_pictures import mixed_pictures
from benchmarks.soak_traffic import Traffic
from protos import classifier_pb2, classifier_pb2_grpc
from tests.serving import tiny_bundle

MAX_GROWTH_MB: Final = 20.0
SPARE_THREADS: Final = 2  # gRPC's own pool breathes
WARM_UP_SHARE: Final = 0.2
KILL_EVERY_S: Final = 10.0
SWAP_EVERY_S: Final = 60.0
AT_ONCE: Final = 64
QUIET_S: Final = 90.0  # to let go of what half-open connections held
console = Console(width=110)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the kernel says of the server."""

    at_s: float
    resident_mb: float
    descriptors: int
    threads: int


def main(
    minutes: Annotated[float, typer.Option(help="Run so long.", envvar="SOAK_MINUTES", min=0.2)] = 20.0,
    rate: Annotated[float, typer.Option(help="Play so many scenes/s.", min=1)] = 30.0,
    models: Annotated[Path | None, typer.Option(help="Serve this folder; else a tiny model.")] = None,
    samples: Annotated[Path | None, typer.Option(help="Write all samples here, as JSON lines.")] = None,
) -> None:
    """Print the table; exit 1 where anything was left over."""
    with tempfile.TemporaryDirectory() as scratch:
        swapped = None if models else Path(scratch)
        if swapped:
            for _ in range(2):  # as many as are kept: the threads of both are there from the start
                tiny_bundle.write(swapped)
        with running_server(models or Path(scratch), "--http-address", "127.0.0.1:0") as server:
            found, quiet, traffic = asyncio.run(_soak(server, swapped=swapped, seconds=60 * minutes, rate=rate))
            exit_code = server.stop()
            unforeseen = server.log.read_text(encoding="utf-8").count("unforeseen error")
    if samples:
        samples.write_text("".join(json.dumps(vars(sample)) + "\n" for sample in found), encoding="utf-8")
    for name, count in sorted(traffic.outcomes.items()):
        console.print(f"{name}: {count}")
    is_missed = _print(found, quiet, unforeseen=unforeseen, exit_code=exit_code)
    raise typer.Exit(int(is_missed or any("INTERNAL" in name or "UNKNOWN" in name for name in traffic.outcomes)))


async def _soak(
    server: ServerProcess, *, swapped: Path | None, seconds: float, rate: float
) -> tuple[list[Sample], tuple[Sample, Sample], Traffic]:
    """Return samples, one a second; what was held while all was quiet, before and after; and the traffic."""
    started, pictures = time.monotonic(), mixed_pictures()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)  # type: ignore[no-untyped-call]  # generated
        model = (await stub.ListModels(classifier_pb2.ListModelsRequest(), timeout=QUIET_S)).models[0].name
    first = Traffic(server.address, pictures, seed=0, model=model, http_port=server.http_port)
    for _ in range(60):  # every pool has its threads from here on
        await first.one()
    await first.channel.close(None)
    before = await _quiet(server, started, least=None)
    traffic = Traffic(server.address, pictures, seed=1, model=model, http_port=server.http_port)
    found = list[Sample]()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_sample_every_second(server, found, until=started + seconds))
        tasks.create_task(_kill_clients(server.address, traffic, until=started + seconds))
        if swapped:
            tasks.create_task(_swap(swapped, traffic, until=started + seconds))
        await _play(traffic, rate=rate, until=started + seconds)
    await traffic.channel.close(None)
    return found, (before, await _quiet(server, started, least=before)), traffic


async def _play(traffic: Traffic, *, rate: float, until: float) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def scene() -> None:
        async with room:
            await traffic.one()

    async with asyncio.TaskGroup() as scenes:
        due = time.monotonic()
        while due < until:
            due += traffic.random.expovariate(rate)
            await asyncio.sleep(due - time.monotonic())
            if not room.locked():
                scenes.create_task(scene())


async def _kill_clients(address: str, traffic: Traffic, *, until: float) -> None:
    """Start a client that streams, and kill -9 it in the middle, again and again."""
    while time.monotonic() < until:
        await asyncio.sleep(KILL_EVERY_S)
        command = (sys.executable, "-m", "benchmarks.soak_traffic", address)
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert client.stdout
        await client.stdout.readexactly(5)
        client.kill()
        await client.wait()
        traffic.outcomes["kill -9 in mid-stream: done"] += 1


async def _swap(models: Path, traffic: Traffic, *, until: float) -> None:
    """Write a new version, and take away one that is no longer kept, again and again."""
    while (due := time.monotonic() + SWAP_EVERY_S) < until:
        await asyncio.sleep(due - time.monotonic())
        new = await asyncio.to_thread(tiny_bundle.write, models)
        if (old := new.with_name(str(int(new.name) - 3))).exists():
            await asyncio.to_thread(shutil.rmtree, old)
        traffic.outcomes["swap: done"] += 1


async def _sample_every_second(server: ServerProcess, found: list[Sample], *, until: float) -> None:
    while (now := time.monotonic()) < until:
        found.append(_sample(server, now))
        if len(found) % 60 == 0:
            console.print(f"{len(found) // 60} min: {found[-1]}", highlight=False)
        await asyncio.sleep(1)


async def _quiet(server: ServerProcess, started: float, *, least: Sample | None) -> Sample:
    """Wait until nothing changes, or with `least` until no more is held than then; at most QUIET_S."""
    until = time.monotonic() + QUIET_S
    last = _sample(server, started)
    while time.monotonic() < until:
        await asyncio.sleep(2)
        now = _sample(server, time.monotonic())
        held = (now.descriptors, now.threads)
        if held == (last.descriptors, last.threads) if least is None else held[0] <= least.descriptors:
            return now
        last = now
    return last


def _sample(server: ServerProcess, at_s: float) -> Sample:
    return Sample(
        at_s=at_s,
        resident_mb=server.resident_mb(),
        descriptors=sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir()),
        threads=server.status("Threads"),
    )


def _print(found: list[Sample], quiet: tuple[Sample, Sample], *, unforeseen: int, exit_code: int) -> bool:
    """Print the table; say whether anything was missed."""
    warm = found[round(WARM_UP_SHARE * len(found)) :]
    window = max(1, len(warm) // 8)
    early, late = (statistics.median(one.resident_mb for one in part) for part in (warm[:window], warm[-window:]))
    before, after = quiet
    rows = (
        ("resident MB, growth after warm-up", late - early, MAX_GROWTH_MB),
        ("descriptors, left over", after.descriptors - before.descriptors, 0),
        ("threads, left over", after.threads - before.threads, SPARE_THREADS),
        ("unforeseen errors in the log", unforeseen, 0),
        ("exit code after SIGTERM", abs(exit_code), 0),
    )
    table = Table("after all", "wanted at most", "found", "")
    for name, value, most in rows:
        table.add_row(name, f"{most:g}", f"{value:.4g}", "met" if value <= most else "MISSED")
    console.print(table)
    peak = max(one.resident_mb for one in found)
    console.print(f"resident MB: {early:.0f} after the warm-up, {late:.0f} at the end, {peak:.0f} at most")
    console.print(f"descriptors: {before.descriptors} before, {after.descriptors} after")
    console.print(f"threads: {before.threads} before, {after.threads} after")
    return any(value > most for _, value, most in rows)


if __name__ == "__main__":
    typer.run(main)
