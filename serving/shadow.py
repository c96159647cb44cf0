"""Try a candidate on live traffic: a share of the requests also runs on it, after their answers are given.

Callers never see it fail, and wait for one of its pictures at most: those of one request at a time go to the candidate
one by one, and are dropped where any other waits, for the candidate or for the version that answers. So no more than
one request's pictures are held for it. What differs is counted. Knows neither grpc nor HTTP.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Literal

import numpy as np

from bundle.errors import ImageError
from serving.catalogue import Catalogue
from serving.classifier import ServedModel
from serving.errors import ServingError
from serving.metrics import Metrics
from serving.steps import Payload, Probabilities, Verdict

Pair = tuple[Payload, Probabilities]  # a picture, and what it was answered
Agreement = Literal["same", "different", "dropped", "failed"]
_PATIENCE_S: Final = 1.0  # a picture that has waited longer is dropped


class Shadow:
    """One for all models of a server. `offer` belongs to the event loop; answers come on the candidate's threads."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._catalogue = catalogue
        self._metrics = metrics
        self._draw = draw
        self._trying: set[str] = set()  # models of which a request's pictures are on their way

    def offer(
        self, images: Sequence[Payload], outcomes: Sequence[Verdict | ImageError], *, answering: ServedModel
    ) -> None:
        """Run a share of the answered pictures on the model's candidate too; returns at once, raises nothing."""
        shadowing = self._catalogue.shadowing(answering.contract.name)
        if shadowing is None or self._draw() >= shadowing.share:
            return
        candidate = self._catalogue.candidate(answering.contract.name, shadowing.version)
        if candidate is None or candidate is answering:
            return
        pairs = [
            (image, outcome.scores)
            for image, outcome in zip(images, outcomes, strict=True)
            if not isinstance(outcome, ImageError) and _fits(image, answering=answering, candidate=candidate)
        ]
        if answering.contract.name in self._trying:
            self._count(candidate, "dropped", count=len(pairs))
            return
        self._trying.add(answering.contract.name)
        self._try_first(pairs, answering=answering, candidate=candidate)

    def _try_first(self, pairs: Sequence[Pair], *, answering: ServedModel, candidate: ServedModel) -> None:
        """Let the candidate see the first picture, and the others after it; drop them all where others wait."""
        future = None
        if pairs and not (answering.queued_items or candidate.queued_items):
            future = _submit(pairs[0][0], candidate)
        if future is None:
            self._count(candidate, "dropped", count=len(pairs))
            self._trying.discard(answering.contract.name)
            return
        answer, rest = pairs[0][1], pairs[1:]
        future.add_done_callback(partial(self._compare, answer=answer, answering=answering, candidate=candidate))
        future.add_done_callback(lambda _: self._try_first(rest, answering=answering, candidate=candidate))

    def _compare(
        self, future: Future[Verdict], *, answer: Probabilities, answering: ServedModel, candidate: ServedModel
    ) -> None:
        error = future.exception()
        if error is not None:
            self._count(candidate, "dropped" if isinstance(error, ServingError) else "failed", count=1)
            return
        there, here = answering.contract.labels, candidate.contract.labels
        row = future.result().scores
        same = there[int(answer.argmax())] == here[int(row.argmax())]
        self._count(candidate, "same" if same else "different", count=1)
        contract = candidate.contract
        self._metrics.shadow_difference.labels(contract.name, str(contract.version)).observe(
            mean_difference(answer, row, labels=(there, here))
        )

    def _count(self, candidate: ServedModel, agreement: Agreement, *, count: int) -> None:
        contract = candidate.contract
        self._metrics.shadow.labels(contract.name, str(contract.version), agreement).inc(count)


def _submit(image: Payload, candidate: ServedModel) -> Future[Verdict] | None:
    """Return the future of a picture, or nothing where the candidate takes none."""
    try:
        return candidate.submit([image], deadline=time.monotonic() + _PATIENCE_S)[0]
    except ServingError:
        return None


def mean_difference(
    left: Probabilities, right: Probabilities, *, labels: tuple[tuple[str, ...], tuple[str, ...]]
) -> float:
    """Return the mean absolute difference of (C,) probabilities over all labels of either; an absent one has 0."""
    if labels[0] == labels[1]:
        return float(np.abs(left - right).mean())
    first = dict(zip(labels[0], left.tolist(), strict=True))
    second = dict(zip(labels[1], right.tolist(), strict=True))
    union = first.keys() | second.keys()
    return math.fsum(abs(first.get(label, 0.0) - second.get(label, 0.0)) for label in union) / len(union)


def _fits(image: Payload, *, answering: ServedModel, candidate: ServedModel) -> bool:
    """Say whether the candidate may get the same payload: an array is preprocessed already, for the other version."""
    return isinstance(image, bytes) or answering.contract.preprocess == candidate.contract.preprocess
