"""What the server tells about itself, as Prometheus metrics: requests, pictures, stages, batches, answers.

With several worker processes the library keeps the values in files of a shared folder (PROMETHEUS_MULTIPROC_DIR), and
every worker exposes the sums. One registry a server, not the library's global one. Knows no network: a door counts its
requests, a model's batcher is heard through `model_metrics`.
"""

import os
import platform
from collections import Counter as Counts
from collections import defaultdict, deque
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Final, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.multiprocess import MultiProcessCollector

from bundle import __version__
from serving.errors import STATUS
from serving.observer import Observer
from serving.worker_metrics import CrewCollector

Door = Literal["classifier.v1", "inference", "http"]

MAX_COUNTED_LABELS: Final = 1000  # a model with more classes is counted without their names: each is a time series
# Steps of a quarter to a half where times of this server lie: with 1, 2, 5 a quantile was wrong by up to two thirds.
_SECONDS: Final = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0065, 0.008, 0.01, 0.0125, 0.016, 0.02),
    *(0.025, 0.032, 0.04, 0.05, 0.065, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_SCORES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_DIFFERENCES: Final = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_MODEL: Final = ("model", "version")
_STATUSES: Final = ("OK", *sorted(set(STATUS.values())), "INTERNAL")
_KEPT_GONE: Final = 8  # versions of a model: the last figures of one that has just left are still to be read

disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside every series, which nobody reads


class Metrics:
    """Every metric, by name; `model_metrics` binds those of one version."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.exposed = self._exposed()  # what /metrics tells
        self.owners: dict[tuple[str, str], tuple[Observer, str]] = {}  # version to who publishes it, and its digest
        self._gone: dict[str, deque[str]] = {}  # versions by model, the newest last
        self._shown = defaultdict[Gauge, set[tuple[str, ...]]](set)  # labels of what `show_versions` has told
        self._add_requests()
        self._add_stages()
        self._add_versions()
        self._add_answers()

    def _add_requests(self) -> None:
        counter = partial(Counter, registry=self.registry)
        self.requests = counter("calotype_requests", "Requests by outcome.", ("door", "model", "status"))
        self.request_seconds = Histogram(
            "calotype_request_seconds",
            "From request to answer.",
            ("door", "model"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.answered = counter("calotype_answered", "Requests of which every picture got a verdict.", _MODEL)
        self.answered_seconds = counter(
            "calotype_answered_seconds",
            "Of those, by stage; of several pictures the mean, and the rest is queue.",
            (*_MODEL, "stage"),
        )
        self.unanswered = counter(
            "calotype_unanswered", "Requests that a version refused, dropped or could not read.", _MODEL
        )
        self.pictures = counter("calotype_pictures", "Pictures by outcome.", (*_MODEL, "outcome"))
        self.rejected = counter(
            "calotype_rejected", "Pictures that were refused or dropped; 1 of a request unread.", (*_MODEL, "reason")
        )
        self.turned_away = counter(
            "calotype_turned_away", "Requests without a known token, or beyond its rate.", ("reason",)
        )
        for reason in ("token", "rate"):
            self.turned_away.labels(reason)  # 0 from the start, so that the first one is a rise

    def _add_stages(self) -> None:
        histogram = partial(Histogram, registry=self.registry)
        seconds = partial(histogram, labelnames=_MODEL, buckets=_SECONDS)
        self.queue_seconds = seconds("calotype_queue_seconds", "From admission until a thread takes the picture.")
        self.decode_seconds = seconds("calotype_decode_seconds", "From encoded bytes to RGB.")
        self.preprocess_seconds = seconds("calotype_preprocess_seconds", "From RGB to model input.")
        self.inference_seconds = seconds("calotype_inference_seconds", "Of one batch in onnxruntime, in all its runs.")
        self.batch_size = histogram(
            "calotype_batch_size", "Pictures that one instance took together.", (*_MODEL, "closing"), buckets=_SIZES
        )

    def _add_versions(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.queue_pictures = gauge(
            "calotype_queue_pictures", "Pictures that wait.", _MODEL, multiprocess_mode="livesum"
        )
        self.model_info = gauge(
            "calotype_model_info",
            "How many workers serve a version: 1 for a single process.",
            (*_MODEL, "digest", "provider", "variant"),
            multiprocess_mode="livesum",
        )
        self.serving = gauge("calotype_serving", "How many workers say SERVING.", multiprocess_mode="livesum")
        self.load_failures = Counter(
            "calotype_model_load_failures",
            "Times that a version was refused, by any worker.",
            ("model",),
            registry=self.registry,
        )
        self._answering = gauge(
            "calotype_answering",
            "How many workers answer requests that name no version by this one.",
            _MODEL,
            multiprocess_mode="livesum",
        )
        self._refused_versions = gauge(
            "calotype_refused_versions",
            "Versions that are here, and do not serve as their folders stand.",
            ("model",),
            multiprocess_mode="livemax",
        )

    def _add_answers(self) -> None:
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self.shadow = counter(
            "calotype_shadow",
            "Pictures that a candidate also saw: same or different best label, dropped, failed.",
            (*_MODEL, "agreement"),
        )
        self.shadow_difference = histogram(
            "calotype_shadow_difference",
            "Mean absolute difference of a picture's probabilities, candidate to answer.",
            _MODEL,
            buckets=_DIFFERENCES,
        )
        self.predictions = counter("calotype_predictions", "Best labels given.", (*_MODEL, "label"))
        self.unknown = counter("calotype_unknown", "Pictures unlike anything the model was trained on.", _MODEL)
        self.confidence = histogram("calotype_confidence", "Score of the best label.", _MODEL, buckets=_SCORES)

    def _exposed(self) -> CollectorRegistry:
        """Return the registry that is told: with several workers one of the sums of all."""
        exposed = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            exposed = CollectorRegistry()
            MultiProcessCollector(exposed)  # type: ignore[no-untyped-call]
            exposed.register(CrewCollector(os.getppid()))
        else:
            ProcessCollector(registry=exposed)  # CPU, memory, descriptors, start time
        build = Info("calotype_build", "Which server this is.", registry=exposed)
        build.info({"version": __version__, "python": platform.python_version()})
        return exposed

    def expect_requests(self, model: str = "") -> None:
        """Tell 0 of a model's requests in every outcome, of those of no model without a name: a first one is a rise."""
        for door in get_args(Door):
            for status in _STATUSES:
                self.requests.labels(door, model, status)

    def show_versions(self, *, answering: Collection[tuple[str, int]], refused: Collection[str]) -> None:
        """Tell which version of each model answers now, and of which models versions are refused, each as often."""
        counts = Counts(refused)
        self._show(self._answering, {(model, str(version)): 1 for model, version in answering})
        names = {*counts, *(name for name, _ in answering)}
        self._show(self._refused_versions, {(name,): counts[name] for name in names})

    def _show(self, gauge: Gauge, values: dict[tuple[str, ...], int]) -> None:
        """Let a gauge tell these values, by their labels, and no others."""
        for labels in self._shown[gauge] - values.keys():
            withdraw(gauge, *labels)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        self._shown[gauge] = set(values)

    def forget_oldest(self, name: str, version: str) -> None:
        """Hear that a version has gone; keep the series of the newest gone ones of a model, remove older ones.

        Else what is exposed grows by some 9 KB with every version. In the files of several workers nothing is removed.
        """
        gone = self._gone.setdefault(name, deque())
        with suppress(ValueError):
            gone.remove(version)
        gone.append(version)
        if len(gone) > _KEPT_GONE and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            oldest = gone.popleft()
            if (name, oldest) in self.owners:
                return  # it is back
            for metric in vars(self).values():
                if isinstance(metric, Counter | Gauge | Histogram):
                    with suppress(ValueError):  # it has no such labels
                        metric.remove_by_labels({"model": name, "version": oldest})


def withdraw(gauge: Gauge, *labels: str) -> None:
    """Take back what a gauge tells."""
    gauge.labels(*labels).set(0)  # in the file of a worker a series stays: 0 is all that can be said
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        gauge.remove(*labels)
