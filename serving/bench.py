"""Measure a running server through the client: a closed loop of callers, or an open loop of Poisson arrivals.

In the open loop a latency counts from the moment the request was due, not from when it could be sent, so a server that
stalls cannot hide it.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from serving.client import AsyncClient
from serving.errors import ClientError


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server. `rate` in requests/s makes it an open loop; 0 is a closed loop of `concurrency`."""

    address: str
    concurrency: int = 1
    rate: float = 0.0
    seconds: float = 10.0
    requests: int = 0  # stop after so many; 0: only by seconds
    model: str = ""
    timeout_s: float = 10.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What came back."""

    requests: int
    seconds: float
    pictures_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    errors: dict[str, int]  # by gRPC status; pictures refused one by one as "image CODE"


@dataclass
class _Record:
    latencies_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


async def measure(images: Sequence[bytes], load: Load) -> Measurement:
    """Send the images one a request, in turn, until time or requests are used up."""
    async with AsyncClient(load.address) as client:
        record, started = _Record(), time.perf_counter()
        await (_open_loop if load.rate else _closed_loop)(client, images, load, record)
        return _summary(record, time.perf_counter() - started)


async def _closed_loop(client: AsyncClient, images: Sequence[bytes], load: Load, record: _Record) -> None:
    numbers, until = count(), time.perf_counter() + load.seconds

    async def caller() -> None:
        while time.perf_counter() < until and not _is_last(number := next(numbers), load):
            await _call(client, images[number % len(images)], load, record, due=time.perf_counter())

    await asyncio.gather(*(caller() for _ in range(load.concurrency)))


async def _open_loop(client: AsyncClient, images: Sequence[bytes], load: Load, record: _Record) -> None:
    arrivals, due = random.Random(load.seed), time.perf_counter()  # noqa: S311 -- a workload, not a secret
    until = due + load.seconds
    async with asyncio.TaskGroup() as calls:
        for number in count():
            due += arrivals.expovariate(load.rate)
            if due >= until or _is_last(number, load):
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(_call(client, images[number % len(images)], load, record, due=due))


async def _call(client: AsyncClient, image: bytes, load: Load, record: _Record, *, due: float) -> None:
    try:
        answer = await client.classify([image], model=load.model, timeout_s=load.timeout_s)
    except ClientError as failure:
        record.errors[failure.status] += 1
        return
    error = answer.results[0].error
    if error is not None:
        record.errors[f"image {error.code}"] += 1
    else:
        record.latencies_s.append(time.perf_counter() - due)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0..1) of the values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else float("nan")


def _is_last(number: int, load: Load) -> bool:
    return bool(load.requests) and number >= load.requests


def _summary(record: _Record, seconds: float) -> Measurement:
    latencies_ms = [1000 * latency_s for latency_s in record.latencies_s]
    return Measurement(
        requests=len(latencies_ms) + record.errors.total(),
        seconds=seconds,
        pictures_per_s=len(latencies_ms) / seconds,
        p50_ms=percentile(latencies_ms, 0.5),
        p90_ms=percentile(latencies_ms, 0.9),
        p99_ms=percentile(latencies_ms, 0.99),
        errors=dict(record.errors),
    )
