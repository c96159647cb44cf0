"""What a server meets in months, in minutes: pictures of all sizes, bad ones, and clients that vanish in every way.

As a program (`python -m benchmarks.soak_traffic ADDRESS`) it is a client that streams for ever, to be killed.
"""

import asyncio
import random
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Final

import grpc
from PIL import Image

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc

TIMEOUT_S: Final = 20.0
OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, that ends with its channel
)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SIZES: Final = ((31, 17), (48, 40), (500, 375), (375, 500), (1280, 960), (4000, 3000))
Scene = Callable[["Traffic"], Awaitable[None]]


class Traffic:
    """One client's ways; `outcomes` counts how each ended."""

    def __init__(self, address: str, pictures: Sequence[bytes], *, seed: int) -> None:
        self.address = address
        self.pictures = tuple(pictures)
        self.random = random.Random(seed)  # noqa: S311 -- a workload, not a secret
        self.outcomes: Counter[str] = Counter()
        self.channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self.stub = classifier_pb2_grpc.ClassifierStub(self.channel)  # type: ignore[no-untyped-call]  # generated

    async def one(self) -> None:
        """Play one scene, chosen at random, and count its outcome."""
        (scene,) = self.random.choices([scene for scene, _ in SCENES], [weight for _, weight in SCENES])
        name = scene.__name__.removeprefix("_")
        try:
            await scene(self)
            self.outcomes[f"{name}: done"] += 1
        except grpc.aio.AioRpcError as error:
            # The library's own word for a stream whose end it meets while it is still sending.
            is_own = error.details() == "Internal error from Core"
            self.outcomes[f"{name}: {'ended while sending' if is_own else error.code().name}"] += 1
        except asyncio.CancelledError:
            self.outcomes[f"{name}: cancelled"] += 1

    def request(self, count: int = 1) -> pb.ClassifyRequest:
        """Return a request of so many pictures."""
        return pb.ClassifyRequest(images=self.random.choices(self.pictures, k=count))


async def _ask(traffic: Traffic) -> None:
    answer = await traffic.stub.Classify(traffic.request(traffic.random.choice((1, 1, 1, 4))), timeout=TIMEOUT_S)
    if any(result.HasField("error") for result in answer.results):
        raise AssertionError(f"a good picture was refused: {answer.results}")


async def _ask_on_a_new_connection(traffic: Traffic) -> None:
    async with grpc.aio.insecure_channel(traffic.address, options=OPTIONS) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)  # type: ignore[no-untyped-call]  # generated
        await stub.Classify(traffic.request(), timeout=TIMEOUT_S)


async def _send_bad_pictures(traffic: Traffic) -> None:
    picture = bytearray(traffic.random.choice(traffic.pictures))
    for _ in range(4):
        picture[traffic.random.randrange(len(picture))] ^= 1 << traffic.random.randrange(8)
    bad = (
        b"",
        b"no picture",
        bytes(picture),
        bytes(picture[: len(picture) // 2]),
        _bomb(),
        b"\xff\xd8\xff" + b"x" * 999,
    )
    await traffic.stub.Classify(pb.ClassifyRequest(images=bad), timeout=TIMEOUT_S)


async def _send_bad_requests(traffic: Traffic) -> None:
    bad = (
        pb.ClassifyRequest(),
        pb.ClassifyRequest(images=[b"x"] * 65),
        pb.ClassifyRequest(images=[b"x"], model="../../etc/passwd"),
        pb.ClassifyRequest(images=[b"x"], min_score=float("nan")),
        pb.ClassifyRequest(images=[b"x" * (65 * 2**20)]) if traffic.random.random() < 0.02 else pb.ClassifyRequest(),
    )
    await traffic.stub.Classify(traffic.random.choice(bad), timeout=TIMEOUT_S)


async def _give_up(traffic: Traffic) -> None:
    await traffic.stub.Classify(traffic.request(4), timeout=traffic.random.uniform(0.0005, 0.03))


async def _cancel(traffic: Traffic) -> None:
    call = traffic.stub.Classify(traffic.request(4), timeout=TIMEOUT_S)
    await asyncio.sleep(traffic.random.uniform(0, 0.03))
    call.cancel()
    await call


async def _stream(traffic: Traffic) -> None:
    requests = [traffic.request() for _ in range(12)]
    answers = [answer async for answer in traffic.stub.ClassifyStream(requests, timeout=TIMEOUT_S)]
    if len(answers) != len(requests):
        raise AssertionError(f"{len(answers)} answers to {len(requests)} requests")


async def _leave_a_stream(traffic: Traffic) -> None:
    call = traffic.stub.ClassifyStream(_endless(traffic), timeout=TIMEOUT_S)
    await call.read()
    call.cancel()


async def _say_half_a_preface(traffic: Traffic) -> None:
    host, port = traffic.address.rsplit(":", 1)
    loop, line = asyncio.get_running_loop(), socket.socket()
    line.setblocking(False)
    with line:
        await loop.sock_connect(line, (host, int(port)))
        await loop.sock_sendall(line, PREFACE[: traffic.random.randrange(len(PREFACE) + 1)])
        await asyncio.sleep(traffic.random.uniform(0, 3))


async def _endless(traffic: Traffic) -> AsyncIterator[pb.ClassifyRequest]:
    while True:
        yield traffic.request()


SCENES: Final[tuple[tuple[Scene, float], ...]] = (
    (_ask, 60),
    (_ask_on_a_new_connection, 5),
    (_send_bad_pictures, 8),
    (_send_bad_requests, 5),
    (_give_up, 8),
    (_cancel, 8),
    (_stream, 2),
    (_leave_a_stream, 2),
    (_say_half_a_preface, 2),
)


def mixed_pictures(given: Sequence[bytes] = ()) -> list[bytes]:
    """Return the given pictures and made ones: every format, from thumbnails to 12 megapixels."""
    made = []
    for number, size in enumerate(SIZES):
        image = Image.radial_gradient("L").resize(size).convert("RGB")
        names = ("JPEG",) if size[0] >= 4000 else ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
        for name in names if size[0] < 1000 else names[:3]:
            out = BytesIO()
            image.rotate(7 * number).save(out, name)
            made.append(out.getvalue())
    return [*given, *made]


def _bomb() -> bytes:
    """Return a BMP header that announces 10 gigapixels."""
    out = BytesIO()
    Image.new("RGB", (1, 1)).save(out, "BMP")
    header = bytearray(out.getvalue())
    header[18:26] = (100_000).to_bytes(4, "little") * 2  # width and height
    return bytes(header)


async def _stream_for_ever(address: str) -> None:
    traffic = Traffic(address, mixed_pictures(), seed=0)
    while True:
        with suppress(grpc.aio.AioRpcError):  # a full queue ends a stream
            async for _ in traffic.stub.ClassifyStream(_endless(traffic)):
                sys.stdout.write(".")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_stream_for_ever(sys.argv[1]))
