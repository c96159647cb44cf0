"""What a server meets in months, in minutes: pictures of all sizes, bad ones, and clients that vanish in every way.

As a program (`python -m benchmarks.soak_traffic ADDRESS`) it is a client that streams for ever, to be killed.
"""

import asyncio
import random
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection
from typing import Final

import grpc

from benchmarks.soak_pictures import bomb, mixed_pictures
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc, open_inference_pb2, open_inference_pb2_grpc
from serving.tensors import join

TIMEOUT_S: Final = 20.0
OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, that ends with its channel
)
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Scene = Callable[["Traffic"], Awaitable[None]]


class Traffic:
    """One client's ways; `outcomes` counts how each ended. Without an HTTP port nothing is sent there."""

    def __init__(
        self, address: str, pictures: Sequence[bytes], *, seed: int, model: str = "", http_port: int = 0
    ) -> None:
        self.address = address
        self.model = model
        self.http_port = http_port
        self.pictures = tuple(pictures)
        self.random = random.Random(seed)  # noqa: S311 -- a workload, not a secret
        self.outcomes: Counter[str] = Counter()
        self.channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self.stub = classifier_pb2_grpc.ClassifierStub(self.channel)  # type: ignore[no-untyped-call]  # generated

    async def one(self) -> None:
        """Play one scene, chosen at random, and count its outcome."""
        scenes = SCENES + (HTTP_SCENES if self.http_port else ())
        (scene,) = self.random.choices([scene for scene, _ in scenes], [weight for _, weight in scenes])
        name = scene.__name__.removeprefix("_")
        try:
            await scene(self)
            self.outcomes[f"{name}: done"] += 1
        except grpc.aio.AioRpcError as error:
            # The library's own word for a stream whose end it meets while it is still sending.
            is_own = error.details() == "Internal error from Core"
            self.outcomes[f"{name}: {'ended while sending' if is_own else error.code().name}"] += 1
        except _HttpError as error:
            self.outcomes[f"{name}: {error}"] += 1
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
        bomb(),
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


async def _ask_compressed(traffic: Traffic) -> None:
    method = traffic.random.choice((grpc.Compression.Gzip, grpc.Compression.Deflate))
    await traffic.stub.Classify(traffic.request(), timeout=TIMEOUT_S, compression=method)


async def _infer(traffic: Traffic) -> None:
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(traffic.channel)  # type: ignore[no-untyped-call]  # generated
    good, bad = _inference(traffic, traffic.request().images[0]), _inference(traffic, b"no picture")
    await stub.ModelInfer(good, timeout=TIMEOUT_S)
    async for answer in stub.ModelStreamInfer([good, bad, good], timeout=TIMEOUT_S):
        if "internal" in answer.error_message:
            raise AssertionError(answer.error_message)


def _inference(traffic: Traffic, picture: bytes) -> open_inference_pb2.ModelInferRequest:
    request = open_inference_pb2.ModelInferRequest(model_name=traffic.model)
    request.inputs.add(name="images", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(join([picture]))
    return request


class _HttpError(Exception):
    """An HTTP status beyond 400, as text."""


async def _post(traffic: Traffic) -> None:
    await _http(traffic, traffic.request().images[0])


async def _post_no_picture(traffic: Traffic) -> None:
    await _http(traffic, traffic.random.randbytes(10 ** traffic.random.randrange(7)))


async def _http(traffic: Traffic, body: bytes) -> None:
    def post() -> int:
        with closing(HTTPConnection("127.0.0.1", traffic.http_port, timeout=TIMEOUT_S)) as connection:
            connection.request("POST", _path(traffic), body, {"content-type": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            return answer.status

    if (status := await asyncio.to_thread(post)) >= 400:
        raise _HttpError("INTERNAL" if status == 500 else str(status))


async def _leave_a_post(traffic: Traffic) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", traffic.http_port)
    head = f"POST {_path(traffic)} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    writer.write(head.encode() + bytes(traffic.random.randrange(1_000_000)))
    await asyncio.sleep(traffic.random.uniform(0, 1))
    writer.transport.abort()


def _path(traffic: Traffic) -> str:
    return f"/v1/models/{traffic.model}:classify"


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
    (_ask_compressed, 2),
)
HTTP_SCENES: Final[tuple[tuple[Scene, float], ...]] = (  # and V2, which names the model as HTTP does
    (_infer, 3),
    (_post, 8),
    (_post_no_picture, 3),
    (_leave_a_post, 3),
)


async def _stream_for_ever(address: str) -> None:
    traffic = Traffic(address, mixed_pictures(), seed=0)
    while True:
        with suppress(grpc.aio.AioRpcError):  # a full queue ends a stream
            async for _ in traffic.stub.ClassifyStream(_endless(traffic)):
                sys.stdout.write(".")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_stream_for_ever(sys.argv[1]))
