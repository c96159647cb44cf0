"""What the batcher calls: one picture from its bytes to model input, and inputs together to answers.

Counts and times both for the metrics, and for the trace of a picture that has one.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bundle.errors import ImageError
from bundle.preprocess import DecodeLimits, decode_pixels, to_input
from bundle.runtime import OnnxModel, joined
from bundle.scores import is_unknown, probabilities
from serving.metrics import MAX_COUNTED_LABELS
from serving.model_metrics import ModelMetrics
from serving.stages import PictureStages

Picture = NDArray[np.uint8]  # (H, W, 3)
Payload = bytes | Picture  # encoded, or already model input
Probabilities = NDArray[np.float64]  # (C,)


class Verdict(NamedTuple):
    """What a model says of one picture."""

    scores: Probabilities
    unknown: bool  # unlike anything that the model was trained on
    input_s: float = 0.0  # of decoding and preprocessing it
    inference_s: float = 0.0  # of the batch that it was in


class Job(NamedTuple):
    """A picture on its way; `stages` where it is traced."""

    image: Payload
    stages: PictureStages | None = None
    input_s: float = 0.0


class PictureSteps:
    """The two steps of one model. Called from several threads at once. A batch of over `max_run` takes several runs.

    `decoding` is held from the bytes of a picture to model input.
    """

    def __init__(
        self,
        model: OnnxModel,
        *,
        limits: DecodeLimits,
        decoding: AbstractContextManager[object],
        metrics: ModelMetrics,
        max_run: int,
    ) -> None:
        self._model = model
        self._max_run = max_run
        self._contract = model.bundle.manifest.contract
        self._limits = limits
        self._decoding = decoding
        self._metrics = metrics
        self._counts_labels = len(self._contract.labels) <= MAX_COUNTED_LABELS

    def prepare(self, job: Job) -> Job:
        """Decode and preprocess, as `bundle.preprocess.load_input` does, with a watch on both."""
        if not isinstance(job.image, bytes):
            if job.stages:
                job.stages.end("queue", start_ns=job.stages.admitted_ns)
            return job
        with self._decoding:
            try:
                return self._decode(job.image, job.stages)
            except ImageError as error:
                self._metrics.on_failure(error.code)
                raise
            except Exception:
                self._metrics.on_failure("INTERNAL")
                raise

    def _decode(self, image: bytes, stages: PictureStages | None) -> Job:
        start_ns = stages.end("queue", start_ns=stages.admitted_ns) if stages else 0
        spec, started = self._contract.preprocess, time.perf_counter()
        try:
            picture = decode_pixels(image, cover_px=spec.resize_px, limits=self._limits)
        finally:  # what cannot be read takes its time too
            decoded = time.perf_counter()
            self._metrics.on_stage("decode", seconds=decoded - started)
            if stages:
                start_ns = stages.end("decode", start_ns=start_ns)
        row = to_input(picture, spec)
        done = time.perf_counter()
        self._metrics.on_stage("preprocess", seconds=done - decoded)
        if stages:
            stages.end("preprocess", start_ns=start_ns)
        return Job(row, stages, done - started)

    def run(self, jobs: Sequence[Job]) -> Sequence[Verdict | Exception]:
        """Return a verdict on each picture; an error for one of which the network makes no numbers."""
        try:
            return self._run(jobs)
        except Exception:
            for _ in jobs:
                self._metrics.on_failure("INTERNAL")
            raise

    def _run(self, jobs: Sequence[Job]) -> Sequence[Verdict | Exception]:
        start_ns = time.time_ns()
        pictures = np.stack([np.asarray(job.image) for job in jobs])
        started = time.perf_counter()
        starts = range(0, len(pictures), self._max_run)
        output = joined([self._model.run(pictures[start : start + self._max_run]) for start in starts])
        inference_s = time.perf_counter() - started
        are_finite = np.all(np.isfinite(output.logits), axis=1, keepdims=True)  # not where a half float overflows
        logits = np.where(are_finite, output.logits, np.float32(0))
        rows = probabilities(logits, temperature=self._contract.temperature)
        unknown_below = self._contract.unknown_below
        verdicts = [
            Verdict(row, is_unknown(similarity, unknown_below=unknown_below), job.input_s, inference_s)
            for job, row, similarity in zip(jobs, rows, output.similarity, strict=True)
        ]
        for job in jobs:
            if job.stages:
                job.stages.end("inference", start_ns=start_ns)
        answers: list[Verdict | Exception] = []
        for verdict, is_finite in zip(verdicts, are_finite[:, 0], strict=True):
            if not is_finite:
                self._metrics.on_failure("INTERNAL")
                answers.append(ArithmeticError("the network's answer is not finite"))
                continue
            answers.append(verdict)
            best = int(verdict.scores.argmax())
            label = self._contract.labels[best] if self._counts_labels else None
            self._metrics.on_answer(label, score=float(verdict.scores[best]), unknown=verdict.unknown)
        return answers
