"""Measure a running server through the client: a closed loop of callers, or an open loop of Poisson arrivals.

In the open loop a latency counts from the moment the request was due, not from when it could be sent, so a server that
stalls cannot hide it. Requests are serialised once and never tried again, so that this costs little beside the server
and sees every refusal.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import grpc

from protos import classifier_pb2 as pb
from serving.answers import enum_name
from serving.channel import OPEN, Access
from serving.client import MAX_MESSAGE_BYTES


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server. `rate` in requests/s makes it an open loop; 0 is a closed loop of `concurrency`."""

    address: str
    access: Access = OPEN
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
    cpu_s: float  # of this load generator
    refused_p99_ms: float  # of the calls that ended with a status other than OK
    errors: dict[str, int]  # by gRPC status; pictures refused one by one as "image CODE"


@dataclass
class _Record:
    latencies_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


_METHOD: Final = f"/{pb.DESCRIPTOR.services_by_name['Classifier'].full_name}/Classify"
_OPTIONS: Final = (("grpc.enable_retries", 0), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES))
_AWAY_S: Final = 0.1  # before a caller tries a server again that is not there: else only this would be busy
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


async def measure(images: Sequence[bytes], load: Load) -> Measurement:
    """Send the images one a request, in turn, until time or requests are used up."""
    requests = [pb.ClassifyRequest(images=[image], model=load.model).SerializeToString() for image in images]
    async with load.access.async_channel(load.address, _OPTIONS) as channel:
        call: Call = channel.unary_unary(_METHOD, None, None)
        record, started, cpu_started = _Record(), time.perf_counter(), time.process_time()
        await (_open_loop if load.rate else _closed_loop)(call, requests, load=load, record=record)
        return _summary(record, time.perf_counter() - started, cpu_s=time.process_time() - cpu_started)


async def _closed_loop(call: Call, requests: Sequence[bytes], *, load: Load, record: _Record) -> None:
    numbers, until = count(), time.perf_counter() + load.seconds

    async def caller() -> None:
        while time.perf_counter() < until and not _is_last(number := next(numbers), load):
            is_there = await _send(
                call, requests[number % len(requests)], load=load, record=record, due=time.perf_counter()
            )
            if not is_there:
                await asyncio.sleep(_AWAY_S)

    await asyncio.gather(*(caller() for _ in range(load.concurrency)))


async def _open_loop(call: Call, requests: Sequence[bytes], *, load: Load, record: _Record) -> None:
    arrivals, due = random.Random(load.seed), time.perf_counter()  # noqa: S311 -- a workload, not a secret
    until = due + load.seconds
    async with asyncio.TaskGroup() as calls:
        for number in count():
            due += arrivals.expovariate(load.rate)
            if due >= until or _is_last(number, load):
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(_send(call, requests[number % len(requests)], load=load, record=record, due=due))


async def _send(call: Call, request: bytes, *, load: Load, record: _Record, due: float) -> bool:
    """Send one and record what came of it; say whether a server was there."""
    try:
        answer = pb.ClassifyResponse.FromString(
            await call(request, timeout=load.timeout_s, metadata=load.access.metadata())
        )
    except grpc.aio.AioRpcError as failure:
        record.refused_s.append(time.perf_counter() - due)
        record.errors[failure.code().name] += 1
        return failure.code() is not grpc.StatusCode.UNAVAILABLE
    result = answer.results[0]
    if result.HasField("error"):
        record.errors[f"image {enum_name(pb.ImageError.Code, result.error.code)}"] += 1
    else:
        record.latencies_s.append(time.perf_counter() - due)
    return True


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0..1) of the values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else float("nan")


def _is_last(number: int, load: Load) -> bool:
    return bool(load.requests) and number >= load.requests


def _summary(record: _Record, seconds: float, *, cpu_s: float) -> Measurement:
    latencies_ms = [1000 * latency_s for latency_s in record.latencies_s]
    return Measurement(
        requests=len(latencies_ms) + record.errors.total(),
        seconds=seconds,
        pictures_per_s=len(latencies_ms) / seconds,
        p50_ms=percentile(latencies_ms, 0.5),
        p90_ms=percentile(latencies_ms, 0.9),
        p99_ms=percentile(latencies_ms, 0.99),
        cpu_s=cpu_s,
        refused_p99_ms=percentile([1000 * refused_s for refused_s in record.refused_s], 0.99),
        errors=dict(record.errors),
    )
