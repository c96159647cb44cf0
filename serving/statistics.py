"""What the metrics say of one version since the start, in the terms of the Open Inference Protocol.

Reads `serving.metrics`, counts nothing itself. Knows no network.
"""

from dataclasses import dataclass
from typing import Final

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
    """Return the statistics of one version, of all workers together; zeros where nothing was counted."""
    samples = [sample for family in metrics.exposed.collect() for sample in family.samples]
    labels = {"model": name, "version": str(version)}

    def total(metric: str, **more: str) -> float:
        wanted = labels | more
        return sum(one.value for one in samples if one.name == metric and wanted.items() <= one.labels.items())

    def total_ns(stage: str) -> int:
        return round(_NS * total("calotype_answered_seconds_total", stage=stage))

    return Statistics(
        pictures=round(total("calotype_pictures_total", outcome="OK")),
        batches=round(total("calotype_batch_size_count")),
        answered=round(total("calotype_answered_total")),
        failed=round(total("calotype_unanswered_total")),
        total_ns=total_ns("total"),
        input_ns=total_ns("input"),
        infer_ns=total_ns("inference"),
    )
