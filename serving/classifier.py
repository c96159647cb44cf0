"""One model being served: a proved bundle, its session, and its batcher. Knows nothing of gRPC."""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle.golden import replay
from bundle.manifest import Contract
from bundle.preprocess import DecodeLimits, load_input
from bundle.repository import Bundle, load_bundle
from bundle.runtime import OnnxModel, open_model
from bundle.scores import Ranked, probabilities, rank
from serving.batcher import Batcher, BatcherLimits
from serving.plan import make_plan, usable_cores
from serving.settings import ServerSettings

DEFAULT_TOP_K = 5
Probabilities = NDArray[np.float64]
ImageBatcher = Batcher[bytes, NDArray[np.uint8], Probabilities]


class ServedModel:
    """A model that is ready: golden pictures replayed, every batch size warmed, threads started."""

    def __init__(self, model: OnnxModel, batcher: ImageBatcher) -> None:
        self._batcher = batcher
        self.bundle: Bundle = model.bundle
        self.contract: Contract = model.bundle.manifest.contract
        self.provider = model.provider
        self.precision = model.variant.precision

    def submit(self, images: Sequence[bytes], *, deadline: float | None) -> list[Future[Probabilities]]:
        """Queue encoded pictures; each future gives probabilities (C,) or raises. `deadline` is on time.monotonic.

        Raises QueueFullError or NotReadyError, and then nothing is queued.
        """
        return self._batcher.submit(images, sizes_bytes=[len(image) for image in images], deadline=deadline)

    def rank(self, row: Probabilities, *, top_k: int, min_score: float) -> tuple[Ranked, ...]:
        """Return the labels of one row of probabilities (C,), best first; top_k 0 means 5."""
        return rank(row, self.contract.labels, top_k=top_k or DEFAULT_TOP_K, min_score=min_score)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued; say whether that was in time."""
        return self._batcher.close(timeout_s)


def load_model(folder: Path, settings: ServerSettings) -> ServedModel:
    """Open, prove and warm a bundle. Raises BundleError, GoldenError or ProviderError; then it must not serve."""
    plan = make_plan(
        cores=usable_cores(),
        provider=settings.provider,
        instances=settings.instances,
        intra_op_threads=settings.intra_op_threads,
        decode_threads=settings.decode_threads,
    )
    model = open_model(
        load_bundle(folder),
        precision=settings.precision,
        provider=settings.provider,
        intra_op_threads=plan.intra_op_threads,
    )
    replay(model)
    contract = model.bundle.manifest.contract
    spec = contract.preprocess
    limits = BatcherLimits(
        instances=plan.instances,
        prepare_threads=plan.decode_threads,
        batch_sizes=batch_sizes(settings.max_batch),
        max_wait_ms=settings.max_wait_ms,
        max_queue_items=settings.max_queue_images,
        max_queue_bytes=settings.max_queue_bytes,
    )
    for size in limits.batch_sizes:
        model.run(np.zeros((size, spec.crop_px, spec.crop_px, 3), np.uint8))
    decode_limits = DecodeLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels)
    batcher = ImageBatcher(
        lambda data: load_input(data, spec, limits=decode_limits),
        lambda rows: list(probabilities(model.run(np.stack(rows)), temperature=contract.temperature)),
        limits=limits,
    )
    batcher.start()
    return ServedModel(model, batcher)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the powers of two up to max_batch, and max_batch itself."""
    powers = {2**exponent for exponent in range(max_batch.bit_length())}
    return tuple(sorted({power for power in powers if power <= max_batch} | {max_batch}))
