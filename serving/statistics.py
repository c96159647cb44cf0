"""What the metrics say of one version since the start, in the terms of the Open Inference Protocol.

Reads `serving.metrics`, counts nothing itself. Knows no network.
"""

from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from serving.metrics import Metrics

_NS: Final = 1_000_000_000  # in a second


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Pictures, batches and nanoseconds of one version, over all doors."""

    answered: int  # pictures
    failed: int  # pictures that could not be read, were refused or dropped
    batches: int
    queued: int  # pictures that a thread has taken
    queue_ns: int
    input_ns: int  # decode and preprocess
    infer_ns: int  # a batch's time once, not once for each of its pictures


def read_statistics(metrics: Metrics, name: str, version: int) -> Statistics:
    """Return the statistics of one version; zeros where nothing was counted."""
    labels = {"model": name, "version": str(version)}

    def total(metric: MetricWrapperBase, suffix: str) -> float:
        return sum(sample.value for sample in _samples(metric, suffix, labels))

    def total_ns(metric: MetricWrapperBase) -> int:
        return round(_NS * total(metric, "_sum"))

    pictures = _samples(metrics.pictures, "_total", labels)  # once: two readings would disagree under load
    return Statistics(
        answered=round(sum(sample.value for sample in pictures if sample.labels["outcome"] == "OK")),
        failed=round(
            sum(sample.value for sample in pictures if sample.labels["outcome"] != "OK")
            + total(metrics.rejected, "_total")
        ),
        batches=round(total(metrics.batch_size, "_count")),
        queued=round(total(metrics.queue_seconds, "_count")),
        queue_ns=total_ns(metrics.queue_seconds),
        input_ns=total_ns(metrics.decode_seconds) + total_ns(metrics.preprocess_seconds),
        infer_ns=total_ns(metrics.inference_seconds),
    )


def _samples(metric: MetricWrapperBase, suffix: str, labels: dict[str, str]) -> list[Sample]:
    """Return the samples that carry these labels, whatever their others are."""
    return [
        sample
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
    ]
