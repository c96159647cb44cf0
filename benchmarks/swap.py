"""What a swap costs those who are being answered: latency with and without new versions, and memory after each.

`python -m benchmarks.swap models/NAME/VERSION PICTURES…` copies the model under new version numbers, serves them one
after the other to a steady load that never retries, and prints one JSON object. A failed call ends it with exit 1.
"""

import asyncio
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import grpc
import onnx
import typer

from benchmarks.server_process import ServerProcess, running_server
from bundle.contract import CONTRACT_KEY, contract_to_json
from bundle.repository import load_bundle, write_manifest
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.bench import percentile

_AFTER_S = 0.5  # a swap counts for so long after the new version first answered: the old one is closed meanwhile


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the callers saw, and what the server kept."""

    calls: int
    quiet_p50_ms: float
    quiet_p99_ms: float
    swap_p50_ms: float
    swap_p99_ms: float
    swap_worst_ms: float
    first_answer_s: list[float]  # from the folder's appearance to the first answer of that version
    resident_mb: list[int]  # before the first swap, and after each


def main(
    model: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")],
    pictures: list[Path],
    swaps: int = 10,
    concurrency: int = 4,
    quiet_s: float = 4.0,
) -> None:
    """Measure swaps under a closed loop of callers."""
    data = [path.read_bytes() for path in pictures]
    with tempfile.TemporaryDirectory() as place:
        staged = [renumbered(model, Path(place), version=number + 1) for number in range(swaps + 1)]
        home = Path(place) / "models" / model.parent.name
        home.mkdir(parents=True)
        staged.pop(0).rename(home / "1")
        with running_server(home.parent, "--watch-s", "0.1") as server:
            figures = asyncio.run(
                measure(Load(data), server, home=home, staged=staged, concurrency=concurrency, quiet_s=quiet_s)
            )
    typer.echo(json.dumps(asdict(figures)))


def renumbered(model: Path, place: Path, *, version: int) -> Path:
    """Return a copy of a bundle that says it is this version, outside the folder that is served."""
    folder = shutil.copytree(model, place / "staged" / str(version))
    manifest = load_bundle(folder).manifest
    contract = replace(manifest.contract, version=version)
    variants = []
    for variant in manifest.variants:
        graph = onnx.load(folder / variant.file)
        onnx.helper.set_model_props(graph, {CONTRACT_KEY: contract_to_json(contract)})
        data = graph.SerializeToString()
        (folder / variant.file).write_bytes(data)
        variants.append(replace(variant, sha256=hashlib.sha256(data).hexdigest()))
    write_manifest(folder, replace(manifest, contract=contract, variants=tuple(variants)))
    return folder


class Load:
    """Callers that go on until told to stop; every call's begin, end and version."""

    def __init__(self, data: Sequence[bytes]) -> None:
        self._data = data
        self.calls: list[tuple[float, float]] = []
        self.versions: set[str] = set()
        self.has_news = asyncio.Event()
        self.is_over = False

    async def caller(self, stub: classifier_pb2_grpc.ClassifierStub, place: int) -> None:
        """Call again and again, without retries."""
        while not self.is_over:
            request = pb.ClassifyRequest(images=[self._data[place % len(self._data)]])
            started = time.perf_counter()
            answer = await stub.Classify(request, timeout=30)
            self.calls.append((started, time.perf_counter()))
            if answer.version not in self.versions:
                self.versions.add(answer.version)
                self.has_news.set()
            place += 1

    def latencies_ms(self, since: float) -> list[float]:
        """Return the latencies of the calls that ended after a moment, ascending."""
        return sorted(1000 * (end - start) for start, end in self.calls if end >= since)


async def measure(
    load: Load, server: ServerProcess, *, home: Path, staged: Sequence[Path], concurrency: int, quiet_s: float
) -> Figures:
    """Run the load, first alone, then while one version after the other appears. Raises what a call raises."""
    async with grpc.aio.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)  # type: ignore[no-untyped-call]  # generated
        async with asyncio.TaskGroup() as callers:
            for place in range(concurrency):
                callers.create_task(load.caller(stub, place))
            await asyncio.sleep(1)
            began = time.perf_counter()
            await asyncio.sleep(quiet_s)
            quiet, during, seconds, resident = load.latencies_ms(began), [], [], [round(server.resident_mb())]
            for folder in staged:
                appeared = time.perf_counter()
                folder.rename(home / folder.name)
                while folder.name not in load.versions:
                    load.has_news.clear()
                    await load.has_news.wait()
                seconds.append(round(time.perf_counter() - appeared, 3))
                await asyncio.sleep(_AFTER_S)
                during += load.latencies_ms(appeared)
                resident.append(round(server.resident_mb()))
            load.is_over = True
    during.sort()
    return Figures(
        calls=len(load.calls),
        quiet_p50_ms=percentile(quiet, 0.5),
        quiet_p99_ms=percentile(quiet, 0.99),
        swap_p50_ms=percentile(during, 0.5),
        swap_p99_ms=percentile(during, 0.99),
        swap_worst_ms=during[-1],
        first_answer_s=seconds,
        resident_mb=resident,
    )


if __name__ == "__main__":
    typer.run(main)
