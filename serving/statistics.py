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
    """What one version did, over all doors; a request's stages are the mean of its pictures'."""

    pictures: int  # answered
    batches: int
    answered: int  # requests
    failed: int  # requests that were refused or dropped, or of which a picture could not be read
    total_ns: int  # of the answered requests, as the rest
    input_ns: int  # decode and preprocess
    infer_ns: int  # of the whole batch


def read_statistics(metrics: Metrics, name: str, version: int) -> Statistics:
    """Return the statistics of one version; zeros where nothing was counted."""
    labels = {"model": name, "version": str(version)}

    def total(metric: MetricWrapperBase, suffix: str = "_total", **more: str) -> float:
        return sum(sample.value for sample in _samples(metric, suffix, labels | more))

    def total_ns(stage: str) -> int:
        return round(_NS * total(metrics.answered_seconds, stage=stage))

    return Statistics(
        pictures=round(total(metrics.pictures, outcome="OK")),
        batches=round(total(metrics.batch_size, "_count")),
        answered=round(total(metrics.answered)),
        failed=round(total(metrics.unanswered)),
        total_ns=total_ns("total"),
        input_ns=total_ns("input"),
        infer_ns=total_ns("inference"),
    )


def _samples(metric: MetricWrapperBase, suffix: str, labels: dict[str, str]) -> list[Sample]:
    """Return the samples that carry these labels, whatever their others are."""
    return [
        sample
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
    ]
