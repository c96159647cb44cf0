"""Every limit crossed by one, over a real socket; and what refusals tell, which must be nothing of the inside."""

import asyncio
import queue
import threading
from contextlib import asynccontextmanager

import grpc
import pytest
import tiny_bundle
from running import Running, plain_channel

from bundle.preprocess import decode_pixels
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.loading import load_model
from serving.metrics import Metrics
from serving.occupancy import Occupancy
from serving.server import Server
from serving.settings import ServerSettings

PICTURE = tiny_bundle.picture("red", size=(40, 30), file_format="BMP")
OTHER = tiny_bundle.picture("red", size=(40, 31), file_format="BMP")
SETTINGS = ServerSettings(
    address="127.0.0.1:0",
    http_address="off",
    instances=1,
    max_images_per_request=3,
    max_image_bytes=len(OTHER),
    max_pixels=40 * 30,
    max_message_bytes=4 * len(OTHER),
    max_concurrent_streams=2,
)
SOON_S, LATE_S = 0.3, 20


@asynccontextmanager
async def channel_to(models):
    """A channel without retries, and no limit of its own."""
    metrics = Metrics()
    catalogue = Catalogue(models, lambda folder: load_model(folder, SETTINGS, metrics=metrics))
    server = Server(catalogue, SETTINGS, metrics=metrics)
    await server.startup()
    await server.say_serving()
    options = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        yield channel
    await server.shutdown()


async def refusal(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def test_limits_of_a_request(models):
    """As many pictures, and as many bytes, as are allowed are answered; one more is refused, by its number."""

    async def scene():
        async with channel_to(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            for images, status, text in (
                ([PICTURE] * 3, "OK", ""),
                ([PICTURE] * 4, "INVALID_ARGUMENT", "found 4, wanted at most 3"),
                ([b"x" * SETTINGS.max_message_bytes], "RESOURCE_EXHAUSTED", str(SETTINGS.max_message_bytes)),
            ):
                found, details = await refusal(stub.Classify(pb.ClassifyRequest(images=images)))
                assert found == status
                assert text in details

    asyncio.run(scene())


def test_limits_of_a_picture(models):
    """Bytes and pixels: its neighbour is answered."""
    too_long, too_wide = PICTURE.ljust(len(OTHER) + 1, b"\0"), OTHER

    async def scene():
        async with channel_to(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            return await stub.Classify(pb.ClassifyRequest(images=[too_long, too_wide, PICTURE]))

    long, wide, good = asyncio.run(scene()).results
    codes = [pb.ImageError.Code.Name(result.error.code) for result in (long, wide)]
    assert codes == ["TOO_LARGE", "TOO_MANY_PIXELS"]
    assert good.predictions[0].label == "red"


def test_a_picture_must_fit_into_the_memory_of_its_decoder(models, monkeypatch):
    """Two decode at once where 256 MB are all: 9 Mpx of a PNG would take 72, of a JPEG nearly nothing."""
    monkeypatch.setattr("serving.cgroups.memory_limit_bytes", lambda: 256_000_000)
    large = [tiny_bundle.picture("red", size=(3000, 3000), file_format=name) for name in ("PNG", "JPEG")]
    with Running(models, instances=2) as server, plain_channel(server.address) as channel:
        answer = classifier_pb2_grpc.ClassifierStub(channel).Classify(pb.ClassifyRequest(images=large))
    png, jpeg = answer.results
    assert png.error.code == pb.ImageError.TOO_MANY_PIXELS
    assert "72 MB while this PNG is decoded, wanted at most 64 MB" in png.error.message
    assert jpeg.predictions[0].label == "red"


def test_models_take_turns_to_decode(models, monkeypatch):
    """Where two have the memory of one picture: the other's waits until the first is model input."""
    tiny_bundle.write(models, name="shades")
    begun, go_on = queue.SimpleQueue(), threading.Semaphore(0)

    def decode(*arguments, **options):
        begun.put(None)
        assert go_on.acquire(timeout=LATE_S)
        return decode_pixels(*arguments, **options)

    monkeypatch.setattr("serving.steps.decode_pixels", decode)
    occupancy = Occupancy(decoders=1)
    served = [
        load_model(models / name / "1", SETTINGS, metrics=Metrics(), occupancy=occupancy)
        for name in ("colours", "shades")
    ]
    futures = [one.submit([PICTURE])[0] for one in served]
    begun.get(timeout=LATE_S)
    with pytest.raises(queue.Empty):
        begun.get(timeout=SOON_S)
    go_on.release(2)
    assert all(future.result(LATE_S).scores.shape == (3,) for future in futures)
    assert all(one.close(LATE_S) for one in served)


def test_limit_of_streams_holds_back_what_is_beyond_it(models):
    """The third call of a connection waits until one of two streams ends."""

    async def scene():
        async with channel_to(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            streams = [stub.ClassifyStream() for _ in range(2)]
            for stream in streams:
                await stream.write(pb.ClassifyRequest(images=[PICTURE]))
                assert (await stream.read()).results
            request = pb.ClassifyRequest(images=[PICTURE])
            assert (await refusal(stub.Classify(request, timeout=SOON_S)))[0] == "DEADLINE_EXCEEDED"
            await streams[0].done_writing()
            assert await streams[0].read() is grpc.aio.EOF
            assert (await refusal(stub.Classify(request, timeout=LATE_S)))[0] == "OK"
            await streams[1].done_writing()

    asyncio.run(scene())


def test_refusals_tell_nothing_of_the_inside(models):
    """No folder, no file of ours, no stack: neither in details, nor in pictures' errors, nor in the list of models."""
    tiny_bundle.change_constant(tiny_bundle.write(models), "mean", 0.5)
    (tiny_bundle.write(models) / "model.onnx").write_bytes(b"")
    (tiny_bundle.write(models) / "bundle.json").unlink()
    halves = [tiny_bundle.picture("red", file_format=name) for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")]
    damaged = [part for data in halves for part in (data[: len(data) // 2], data[:20] + b"\xff" * 40 + data[60:])]
    requests = [
        pb.ClassifyRequest(),
        pb.ClassifyRequest(images=[b"x"], model="../../../etc/passwd"),
        pb.ClassifyRequest(images=[b"x"], model=str(models)[:3] + "/bundle.json"),
        pb.ClassifyRequest(images=[b"x"], version="../1"),
        pb.ClassifyRequest(images=[b"x"], version="2"),
        pb.ClassifyRequest(images=[b"x"], version="9"),
        pb.ClassifyRequest(images=[b"x"], min_score=float("inf")),
        pb.ClassifyRequest(images=[b"x" * SETTINGS.max_message_bytes]),
    ]

    async def scene():
        async with channel_to(models) as channel:
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            texts = [(await refusal(stub.Classify(request)))[1] for request in requests]
            for part in damaged:
                answer = await stub.Classify(pb.ClassifyRequest(images=[part, b"", b"<?xml <svg"]))
                texts += [result.error.message for result in answer.results]
            listed = (await stub.ListModels(pb.ListModelsRequest())).models
        return texts, [model.reason for model in listed]

    texts, reasons = asyncio.run(scene())
    assert [bool(reason) for reason in reasons] == [False, True, True, True]
    assert all(texts[: len(requests)])
    for text in (*texts, *reasons):
        for inside in (str(models), str(models.parent), "site-packages", "Traceback", "object at 0x", ".py"):
            assert inside not in text


@pytest.mark.parametrize("is_stream", [False, True])
def test_bytes_that_are_no_message_are_an_invalid_argument(models, is_stream):
    """Not a failure of ours; and a stream ends with it, after the answers that are due."""
    good, bad = pb.ClassifyRequest(images=[PICTURE]).SerializeToString(), b"\0"

    async def scene():
        async with channel_to(models) as channel:
            if not is_stream:
                return await refusal(channel.unary_unary("/classifier.v1.Classifier/Classify")(bad))
            call = channel.stream_stream("/classifier.v1.Classifier/ClassifyStream")([good, bad], timeout=LATE_S)
            assert await call.read()
            return await refusal(call.read())

    status, details = asyncio.run(scene())
    assert status == "INVALID_ARGUMENT"
    assert "DecodeError" not in details
