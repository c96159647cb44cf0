"""One served model: a proved bundle, its open session and its batcher. Encoded pictures in, probabilities out.

Knows no grpc: the service turns what comes out of here into messages.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from bundle import golden
from bundle.manifest import Contract
from bundle.preprocess import DecodeLimits, load_input
from bundle.repository import load_bundle
from bundle.runtime import OnnxModel, open_model
from bundle.scores import Ranked, probabilities, rank
from serving.batcher import Batcher, BatcherLimits
from serving.plan import Plan, make_plan, usable_cores
from serving.settings import ServerSettings

Picture = NDArray[np.uint8]  # (H, W, 3)
Probabilities = NDArray[np.float64]  # (C,)
PictureBatcher = Batcher[bytes, Picture, Probabilities]
_DEFAULT_TOP_K: Final = 5

log = structlog.get_logger(__name__)


class ServedModel:
    """A model that has proved itself and answers. Made by `load_model`."""

    def __init__(self, model: OnnxModel, batcher: PictureBatcher) -> None:
        self._batcher = batcher
        self.contract: Contract = model.bundle.manifest.contract
        self.digest = model.bundle.digest
        self.provider: str = model.provider  # the one that really runs
        self.precision: str = model.variant.precision

    def submit(self, images: Sequence[bytes], *, deadline: float | None = None) -> list[Future[Probabilities]]:
        """Admit all encoded pictures or none; each future gets (C,) probabilities, or the picture's own ImageError.

        `deadline` is a time of time.monotonic(). Raises QueueFullError or NotReadyError.
        """
        return self._batcher.submit(images, sizes_bytes=[len(image) for image in images], deadline=deadline)

    def rank(self, row: Probabilities, *, top_k: int = 0, min_score: float = 0.0) -> tuple[Ranked, ...]:
        """Return the best labels of one picture's probabilities (C,); top_k 0 means 5."""
        return rank(row, self.contract.labels, top_k=top_k or _DEFAULT_TOP_K, min_score=min_score)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued for at most timeout_s seconds; say whether all was done."""
        return self._batcher.close(timeout_s)


def load_model(folder: Path, settings: ServerSettings) -> ServedModel:
    """Open a model folder, replay its golden pictures, warm every batch size, and start its threads.

    Raises BundleError where the folder or an answer is not what was exported, ProviderError for a missing provider.
    """
    model = open_model(
        load_bundle(folder),
        precision=settings.precision,
        provider=settings.provider,
        intra_op_threads=settings.intra_op_threads or 1,
    )
    difference = golden.replay(model)
    plan = make_plan(
        cores=usable_cores(),
        provider=model.provider,
        instances=settings.instances,
        intra_op_threads=settings.intra_op_threads,
        decode_threads=settings.decode_threads,
        max_batch=settings.max_batch,
    )
    batcher = _batcher(model, settings, plan=plan)
    batcher.start()
    served = ServedModel(model, batcher)
    log.info(
        "model ready",
        model=served.contract.name,
        version=served.contract.version,
        provider=served.provider,
        precision=served.precision,
        instances=plan.instances,
        intra_op_threads=plan.intra_op_threads,
        decode_threads=plan.decode_threads,
        max_batch=plan.max_batch,
        golden_difference=f"{difference:.1e}",
    )
    return served


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the sizes that are warmed and run: the powers of two below max_batch, and max_batch."""
    return (*(2**power for power in range(max_batch.bit_length()) if 2**power < max_batch), max_batch)


def _batcher(model: OnnxModel, settings: ServerSettings, *, plan: Plan) -> PictureBatcher:
    """Warm every batch size; return the batcher, not yet started."""
    contract, sizes = model.bundle.manifest.contract, batch_sizes(plan.max_batch)
    decode_limits = DecodeLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels)
    crop_px = contract.preprocess.crop_px
    for size in sizes:
        model.run(np.zeros((size, crop_px, crop_px, 3), dtype=np.uint8))

    def prepare(image: bytes) -> Picture:
        return load_input(image, contract.preprocess, limits=decode_limits)

    def run(pictures: Sequence[Picture]) -> Sequence[Probabilities]:
        return list(probabilities(model.run(np.stack(pictures)), temperature=contract.temperature))

    limits = BatcherLimits(
        instances=plan.instances,
        prepare_threads=plan.decode_threads,
        batch_sizes=sizes,
        max_wait_ms=settings.max_wait_ms,
        max_queue_items=settings.max_queue_images,
        max_queue_bytes=settings.max_queue_bytes,
    )
    return Batcher(prepare, run, limits=limits)
