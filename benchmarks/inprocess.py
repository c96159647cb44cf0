"""The same work without a network, in threads: the ceiling for our server, and plain practice.

`python -m benchmarks.inprocess ceiling|plain MODEL PICTURES… --threads 2 --seconds 4` prints one JSON object:
pictures/s, CPU milliseconds a picture, the latency of one picture, and with --labels the best label of each picture.

`ceiling` is our own decoding, preprocessing and onnxruntime call, and nothing else. `plain` is what tutorials do:
Pillow decodes in full, resizes the shorter side bicubically and crops, numpy normalises, and a fp32 session with one
thread runs a graph that takes floats; a session for each thread.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import onnx
import onnxruntime as ort
import typer
from numpy.typing import NDArray
from onnx.utils import Extractor
from PIL import Image

from benchmarks.server_process import WARM_UP_S
from bundle.contract import Contract
from bundle.preprocess import load_input
from bundle.repository import Bundle, load_bundle
from bundle.runtime import Choice, open_model
from serving.bench import percentile

Recipe = Callable[[Sequence[bytes]], NDArray[np.float32]]  # encoded pictures to logits (N, C)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a recipe reached."""

    pictures_per_s: float
    cpu_ms_per_picture: float
    p50_ms: float
    best: Sequence[int] = ()  # index of the best label, picture by picture; none where not asked for


def main(
    recipe: Literal["ceiling", "plain"],
    model: Annotated[Path, typer.Argument(help="Name a bundle models/NAME/VERSION.")],
    pictures: list[Path],
    threads: int = 1,
    batch: int = 1,
    seconds: float = 4.0,
    variant: Choice = "fp32",
    intra_op_threads: int = 1,
    labels: Annotated[bool, typer.Option("--labels")] = False,
) -> None:
    """Measure one recipe."""
    bundle, data = load_bundle(model), [path.read_bytes() for path in pictures]
    makers = {
        "ceiling": lambda: ceiling(bundle, variant, intra_op_threads=intra_op_threads),
        "plain": lambda: plain(bundle),
    }
    figures = measure(makers[recipe], data, threads=threads, batch=batch, seconds=seconds)
    if labels:
        figures = replace(figures, best=best_labels(makers[recipe](), data))
    typer.echo(json.dumps(asdict(figures)))


def best_labels(recipe: Recipe, data: Sequence[bytes]) -> list[int]:
    """Return the index of the best label of each picture."""
    return [int(recipe([item]).argmax()) for item in data]


def ceiling(bundle: Bundle, variant: Choice, *, intra_op_threads: int = 1) -> Recipe:
    """Return our own steps."""
    spec = bundle.manifest.contract.preprocess
    spins = intra_op_threads > 1  # as the server's lone runs do
    model = open_model(bundle, precision=variant, intra_op_threads=intra_op_threads, spins=spins)
    return lambda batch: model.run(np.stack([load_input(data, spec) for data in batch])).logits


def plain(bundle: Bundle) -> Recipe:
    """Return plain practice on the same weights."""
    contract = bundle.manifest.contract
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = floats_in(onnx.load(bundle.folder / bundle.manifest.variant("fp32").file), contract)
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: Sequence[bytes]) -> NDArray[np.float32]:
        floats = np.stack([plain_input(data, contract) for data in batch])
        logits: NDArray[np.float32] = session.run(None, {name: floats})[0]
        return logits

    return run


def floats_in(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Return the graph without its first steps: normalised float32 (N, 3, crop, crop) in, logits out."""
    entry = next(node for node in model.graph.node if node.op_type == "Conv").input[0]
    side = contract.preprocess.crop_px
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] == contract.input.name:
            node.input[0] = entry  # the batch comes first in both
    value = onnx.helper.make_tensor_value_info(entry, onnx.TensorProto.FLOAT, ["N", 3, side, side])
    del model.graph.value_info[:]
    model.graph.value_info.append(value)
    return Extractor(model).extract_model([entry], [contract.output.name])


def plain_input(data: bytes, contract: Contract) -> NDArray[np.float32]:
    """Return float32 (3, crop, crop), the tutorial way."""
    spec = contract.preprocess
    with Image.open(BytesIO(data)) as image:
        picture = image.convert("RGB")
    scale = spec.resize_px / min(picture.size)
    picture = picture.resize(
        (max(spec.crop_px, round(picture.width * scale)), max(spec.crop_px, round(picture.height * scale))),
        Image.Resampling.BICUBIC,
    )
    left, top = (picture.width - spec.crop_px) // 2, (picture.height - spec.crop_px) // 2
    square = np.asarray(picture.crop((left, top, left + spec.crop_px, top + spec.crop_px)))
    floats = (square.astype(np.float32) / 255 - np.array(contract.mean, np.float32)) / np.array(
        contract.std, np.float32
    )
    return np.ascontiguousarray(floats.transpose(2, 0, 1), dtype=np.float32)  # (3, crop, crop)


def measure(make: Callable[[], Recipe], data: Sequence[bytes], *, threads: int, batch: int, seconds: float) -> Figures:
    """Run a recipe in so many threads, each with its own, for so many seconds after warming."""
    recipes = [make() for _ in range(threads)]
    _loop(recipes, data, batch=batch, seconds=WARM_UP_S)
    cpu_started, started = time.process_time(), time.perf_counter()
    latencies_s = _loop(recipes, data, batch=batch, seconds=seconds)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    count = batch * len(latencies_s)
    return Figures(
        pictures_per_s=count / wall_s,
        cpu_ms_per_picture=1000 * cpu_s / count,
        p50_ms=1000 * percentile(latencies_s, 0.5),
    )


def _loop(recipes: Sequence[Recipe], data: Sequence[bytes], *, batch: int, seconds: float) -> list[float]:
    latencies_s: list[float] = []
    until = time.perf_counter() + seconds

    def work(recipe: Recipe, place: int) -> None:
        while (started := time.perf_counter()) < until:
            recipe([data[(place + step) % len(data)] for step in range(batch)])
            place += batch
            latencies_s.append(time.perf_counter() - started)

    workers = [
        threading.Thread(target=work, args=(recipe, number * len(data) // len(recipes)))
        for number, recipe in enumerate(recipes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return latencies_s


if __name__ == "__main__":
    typer.run(main)
