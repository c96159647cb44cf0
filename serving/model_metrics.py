"""The metrics of one version of one model, bound to its labels once: what its batcher and its steps tell."""

from typing import Literal, get_args

from prometheus_client import Histogram

from bundle.errors import ImageError
from serving.metrics import Metrics, withdraw
from serving.observer import Closing, Observer

Stage = Literal["decode", "preprocess"]
Reason = Literal["queue", "deadline", "cancelled"]


class ModelMetrics(Observer):
    """See the module; an observer of the batcher."""

    def __init__(self, metrics: Metrics, name: str, *, version: int) -> None:
        self._labels = labels = (name, str(version))
        self._metrics = metrics
        self._queue = metrics.queue_seconds.labels(*labels)
        self._inference = metrics.inference_seconds.labels(*labels)
        self._stages = {
            "decode": metrics.decode_seconds.labels(*labels),
            "preprocess": metrics.preprocess_seconds.labels(*labels),
        }
        self._confidence = metrics.confidence.labels(*labels)
        self._unknown = metrics.unknown.labels(*labels)
        self._sizes: dict[Closing, Histogram] = {
            "full": metrics.batch_size.labels(*labels, "full"),
            "shared": metrics.batch_size.labels(*labels, "shared"),
            "drained": metrics.batch_size.labels(*labels, "drained"),
        }
        self._answered_pictures = metrics.pictures.labels(*labels, "OK")
        self._answered_requests = metrics.answered.labels(*labels)
        self._unanswered_requests = metrics.unanswered.labels(*labels)
        self._request_seconds = {
            stage: metrics.answered_seconds.labels(*labels, stage) for stage in ("queue", "input", "inference")
        }
        self._queue_pictures = metrics.queue_pictures.labels(*labels)
        # 0 from now on, so that the first one is a rise.
        metrics.load_failures.labels(name)
        metrics.expect_requests(name)
        for reason in get_args(Reason):
            metrics.rejected.labels(*labels, reason)
        for code in {ImageError.code, "INTERNAL", *(kind.code for kind in ImageError.__subclasses__())}:
            metrics.pictures.labels(*labels, code)
        self._serves = False

    def on_wait(self, seconds: float) -> None:
        """See Observer."""
        self._queue.observe(seconds)

    def on_batch(self, size: int, *, closing: Closing, seconds: float) -> None:
        """See Observer."""
        self._inference.observe(seconds)
        self._sizes[closing].observe(size)

    def on_queue(self, items: int) -> None:
        """See Observer."""
        if self._serves:
            self._queue_pictures.set(items)

    def on_drop(self, reason: Literal["deadline", "cancelled"]) -> None:
        """See Observer."""
        self.on_reject(reason, count=1)

    def on_stage(self, stage: Stage, *, seconds: float) -> None:
        """Count one picture's decoding or preprocessing."""
        self._stages[stage].observe(seconds)

    def on_reject(self, reason: Reason, *, count: int) -> None:
        """Count pictures that were refused at the door, or dropped before they were run."""
        self._metrics.rejected.labels(*self._labels, reason).inc(count)

    def on_answer(self, label: str | None, *, score: float, unknown: bool) -> None:
        """Count an answered picture by its best label; None where the model has too many of them."""
        self._answered_pictures.inc()
        self._confidence.observe(score)
        self._unknown.inc(unknown)
        if label is not None:
            self._metrics.predictions.labels(*self._labels, label).inc()

    def on_request(self, *, total_s: float, input_s: float, inference_s: float) -> None:
        """Count a request of which every picture got a verdict; the stages' seconds are the pictures' mean.

        What is left of it is queue. Counted, not reckoned by who reads: sums that are read while they grow would go
        back where one of two has grown already.
        """
        self._answered_requests.inc()
        queue_s = max(0.0, total_s - input_s - inference_s)
        for stage, seconds in (("queue", queue_s), ("input", input_s), ("inference", inference_s)):
            self._request_seconds[stage].inc(seconds)

    def on_unanswered(self) -> None:
        """Count a request that ended without a verdict on every picture."""
        self._unanswered_requests.inc()

    def on_failure(self, outcome: str) -> None:
        """Count a picture that could not be read, or of which the network made nothing."""
        self._metrics.pictures.labels(*self._labels, outcome).inc()

    def on_ready(self, *, digest: str, provider: str, variant: str) -> None:
        """Publish that this version serves, and from now on how many pictures wait for it."""
        self._metrics.owners[self._labels] = (self, digest)
        self._metrics.model_info.labels(*self._labels, digest, provider, variant).set(1)
        self._serves = True
        self.on_queue(0)

    def on_gone(self, *, digest: str, provider: str, variant: str) -> None:
        """Withdraw what `on_ready` published, unless the same version has been loaded anew meanwhile."""
        self._serves = False
        owner, serving = self._metrics.owners.get(self._labels, (self, digest))
        if owner is self or serving != digest:
            withdraw(self._metrics.model_info, *self._labels, digest, provider, variant)
        if owner is self:
            withdraw(self._metrics.queue_pictures, *self._labels)
            self._metrics.owners.pop(self._labels, None)
            self._metrics.forget_oldest(*self._labels)
