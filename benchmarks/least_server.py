"""The least gRPC server for a model: what the library itself costs beside the same decoding and onnxruntime session.

It answers Classify for one picture a call, one session and thread a core, and does nothing else: no limits, no
deadlines, no metrics, no health. `serving_targets` tells its figures beside the server's: less than this, a server on
grpc.aio can hardly take. `python -m benchmarks.least_server MODEL --variant int8` says on standard error, in JSON, at
which port it listens, as the server's log does.
"""

import asyncio
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import grpc
import typer
import uvloop

from benchmarks.inprocess import Recipe, ceiling
from bundle.repository import load_bundle
from bundle.runtime import Choice
from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc


class LeastService(classifier_pb2_grpc.ClassifierServicer):
    """Answers with the best label's index and logit."""

    def __init__(self, pool: ThreadPoolExecutor, recipes: threading.local) -> None:
        self._pool = pool
        self._recipes = recipes

    async def Classify(self, request: pb.ClassifyRequest, context: object) -> pb.ClassifyResponse:  # noqa: ARG002, N802 -- rpc
        """Answer one picture."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, request.images[0])

    def _answer(self, image: bytes) -> pb.ClassifyResponse:
        recipe: Recipe = self._recipes.recipe
        (logits,) = recipe([image])
        best = int(logits.argmax())
        prediction = pb.Prediction(index=best, score=float(logits[best]))
        return pb.ClassifyResponse(results=[pb.ImageResult(predictions=[prediction])])


def main(
    model: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")], variant: Choice = "fp32"
) -> None:
    """Serve it on a free port of 127.0.0.1 until a signal."""
    bundle, recipes = load_bundle(model), threading.local()

    def begin() -> None:
        recipes.recipe = ceiling(bundle, variant)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=begin) as pool:
        uvloop.run(_serve(LeastService(pool, recipes)))


async def _serve(service: LeastService) -> None:
    server = grpc.aio.server()
    classifier_pb2_grpc.add_ClassifierServicer_to_server(service, server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"event": "SERVING", "port": port, "http_port": 0, "seconds": 0.0}), file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    typer.run(main)
