"""A server with the tiny bundle, seen through the V2 rpcs: requests for it, and what its answers say."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import tiny_bundle

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from serving.catalogue import Catalogue
from serving.loading import load_model
from serving.metrics import Metrics
from serving.server import Server
from serving.settings import ServerSettings
from serving.tensors import join

SETTINGS = ServerSettings(address="127.0.0.1:0", http_address="off", max_images_per_request=8, instances=2)
CROP = tiny_bundle.CROP_PX
LABELS = tiny_bundle.LABELS


@asynccontextmanager
async def serving(models, *, settings=SETTINGS, wrap=lambda served: served, metrics=None):
    """A server that says SERVING, a channel to it without retries, and its port."""
    metrics = metrics or Metrics()
    catalogue = Catalogue(models, lambda folder: wrap(load_model(folder, settings, metrics=metrics)))
    server = Server(catalogue, settings, metrics=metrics)
    await server.startup()
    try:
        await server.say_serving()
        options = [("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            yield channel, server.port
    finally:
        await server.shutdown()


def request(*labels, **fields):
    """A request with these encoded pictures."""
    made = pb.ModelInferRequest(model_name="colours", **fields)
    made.inputs.add(name="images", datatype="BYTES", shape=[len(labels)])
    made.raw_input_contents.append(join(tiny_bundle.picture(label) for label in labels))
    return made


def pixels(*shape, colour=(250, 20, 20)):
    """A request with model input of one colour."""
    made = pb.ModelInferRequest(model_name="colours")
    made.inputs.add(name="images", datatype="UINT8", shape=shape)
    made.raw_input_contents.append(np.broadcast_to(np.array(colour, dtype=np.uint8), shape).tobytes())
    return made


def best(response):
    (output, *_), (raw, *_) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    rows = np.frombuffer(raw, dtype="<f4").reshape(tuple(output.shape))
    assert rows.sum(axis=1) == pytest.approx(1, abs=1e-6)
    return [LABELS[index] for index in rows.argmax(axis=1)]


def scene_with(models, scene, **options):
    async def play():
        async with serving(models, **options) as (channel, _):
            return await scene(open_inference_pb2_grpc.GRPCInferenceServiceStub(channel), channel)

    return asyncio.run(play())
