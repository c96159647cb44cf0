"""Measure a running server through the client: a closed loop of callers, or an open loop of Poisson arrivals.

In the open loop a latency counts from the moment the request was due, not from when it could be sent, so a server that
stalls cannot hide it. Requests are serialised once and never tried again, so that this costs little beside the server
and sees every refusal.

With a warm-up the load begins before what is measured: latencies and errors are those of requests due within it,
throughput is what was answered within it. Without one all counts, from the first request to the last answer.
"""

import asyncio
import math
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
from serving.client import MAX_MESSAGE_BYTES, with_next_step
from serving.errors import ClientError


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server. `rate` in requests/s makes it an open loop; 0 is a closed loop of `concurrency`."""

    address: str
    access: Access = OPEN
    concurrency: int = 1
    rate: float = 0.0
    warm_up_s: float = 0.0  # before `seconds` begin
    seconds: float = 10.0
    requests: int = 0  # stop after so many, the warm-up's not counted; 0: only by seconds
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
    answered: int  # pictures of the whole run, a warm-up's among them
    cpu_s: float  # of this load generator, likewise
    refused_p99_ms: float  # of the calls that ended with a status other than OK
    errors: dict[str, int]  # by gRPC status; pictures refused one by one as "image CODE"


@dataclass
class _Record:
    begins: float  # what was due before is no part of it, as are answers after `ends`; time.perf_counter
    ends: float
    wanted: int  # requests; 0: any number
    requests: int = 0
    answered: int = 0
    in_time: int = 0
    latencies_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def take(self, due: float) -> bool:
        """Count a request, unless there have been as many as are wanted; say whether it is to be sent."""
        if due < self.begins:
            return True
        if self.wanted and self.requests == self.wanted:
            return False
        self.requests += 1
        return True

    def fail(self, status: str, *, due: float) -> None:
        """Count a picture without a label."""
        if due >= self.begins:
            self.errors[status] += 1

    def refuse(self, status: str, *, due: float, ended: float) -> None:
        """Count a request without an answer."""
        self.fail(status, due=due)
        if due >= self.begins:
            self.refused_s.append(ended - due)

    def answer(self, *, due: float, ended: float) -> None:
        """Count a picture's answer."""
        self.answered += 1
        self.in_time += self.begins <= ended <= self.ends
        if due >= self.begins:
            self.latencies_s.append(ended - due)


_METHOD: Final = f"/{pb.DESCRIPTOR.services_by_name['Classifier'].full_name}/Classify"
_OPTIONS: Final = (("grpc.enable_retries", 0), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES))
_HOPELESS: Final = ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "UNIMPLEMENTED")  # however often it is sent
_AWAY_S: Final = 0.1  # before a caller tries a server again that is not there: else only this would be busy
Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


async def measure(images: Sequence[bytes], load: Load) -> Measurement:
    """Send the images one a request, in turn, until time or requests are used up; Ctrl-C ends it sooner.

    Raises ClientError for a request that could never be answered; the first image is sent once more to find that out.
    """
    requests = [pb.ClassifyRequest(images=[image], model=load.model).SerializeToString() for image in images]
    async with load.access.async_channel(load.address, _OPTIONS) as channel:
        call: Call = channel.unary_unary(_METHOD, None, None)
        await _ask_once(call, requests[0], load)
        begins, cpu_started = time.perf_counter() + load.warm_up_s, time.process_time()
        ends = begins + load.seconds if load.warm_up_s else math.inf
        record = _Record(begins=begins, ends=ends, wanted=load.requests)
        try:
            await (_open_loop if load.rate else _closed_loop)(call, requests, load=load, record=record)
        except asyncio.CancelledError:
            if not record.requests:
                raise
        seconds = min(ends, time.perf_counter()) - begins
        return _summary(record, seconds, cpu_s=time.process_time() - cpu_started)


async def _ask_once(call: Call, request: bytes, load: Load) -> None:
    try:
        await call(request, timeout=load.timeout_s, metadata=load.access.metadata())
    except grpc.aio.AioRpcError as failure:
        if (status := failure.code().name) in _HOPELESS:
            text = f"{load.address}: {status}: {failure.details()}"
            raise ClientError(with_next_step(text, status=status), status=status) from failure


async def _closed_loop(call: Call, requests: Sequence[bytes], *, load: Load, record: _Record) -> None:
    numbers, until = count(), record.begins + load.seconds

    async def caller() -> None:
        while (due := time.perf_counter()) < until and record.take(due):
            request = requests[next(numbers) % len(requests)]
            if not await _send(call, request, load=load, record=record, due=due):
                await asyncio.sleep(_AWAY_S)

    await asyncio.gather(*(caller() for _ in range(load.concurrency)))


async def _open_loop(call: Call, requests: Sequence[bytes], *, load: Load, record: _Record) -> None:
    arrivals, due = random.Random(load.seed), time.perf_counter()  # noqa: S311 -- a workload, not a secret
    until = record.begins + load.seconds
    async with asyncio.TaskGroup() as calls:
        for number in count():
            due += arrivals.expovariate(load.rate)
            if due >= until or not record.take(due):
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
        record.refuse(failure.code().name, due=due, ended=time.perf_counter())
        return failure.code() is not grpc.StatusCode.UNAVAILABLE
    result = answer.results[0] if len(answer.results) == 1 else None
    if result is None:
        record.fail(f"{len(answer.results)} results", due=due)
    elif result.HasField("error"):
        record.fail(f"image {enum_name(pb.ImageError.Code, result.error.code)}", due=due)
    else:
        record.answer(due=due, ended=time.perf_counter())
    return True


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0..1) of the values do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else float("nan")


def _summary(record: _Record, seconds: float, *, cpu_s: float) -> Measurement:
    latencies_ms = [1000 * latency_s for latency_s in record.latencies_s]
    return Measurement(
        requests=record.requests,
        seconds=seconds,
        pictures_per_s=record.in_time / seconds,
        p50_ms=percentile(latencies_ms, 0.5),
        p90_ms=percentile(latencies_ms, 0.9),
        p99_ms=percentile(latencies_ms, 0.99),
        answered=record.answered,
        cpu_s=cpu_s,
        refused_p99_ms=percentile([1000 * refused_s for refused_s in record.refused_s], 0.99),
        errors=dict(record.errors),
    )
