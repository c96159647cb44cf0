"""What the metrics say of one version since the start, in the terms of the Open Inference Protocol.

Reads `serving.metrics`, counts nothing itself. Knows no network.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from serving.metrics import Metrics

_NS: Final = 1_000_000_000  # in a second
_PICTURES: Final = "calotype_pictures_total"
_BATCHES: Final = "calotype_batch_size_count"
_ANSWERED: Final = "calotype_answered_total"
_UNANSWERED: Final = "calotype_unanswered_total"
_SECONDS: Final = "calotype_answered_seconds_total"
_READ: Final = (_PICTURES, _BATCHES, _ANSWERED, _UNANSWERED, _SECONDS)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What one version did, over all doors; a request's stages are the mean of its pictures'."""

    pictures: int  # answered
    batches: int
    answered: int  # requests
    failed: int  # requests that were refused or dropped, or of which a picture could not be read
    queue_ns: int  # of the answered requests, as the rest: what is left, also the wait for pictures of the same request
    input_ns: int  # decode and preprocess
    infer_ns: int  # of the whole batch


def read_statistics(metrics: Metrics, versions: Sequence[tuple[str, int]]) -> list[Statistics]:
    """Return those of versions of models, of all workers together; zeros where nothing was counted."""
    totals = defaultdict[tuple[str, ...], float](float)  # by metric, model, version, and stage or outcome
    for family in metrics.exposed.collect():
        for sample in family.samples:
            if sample.name in _READ:
                kind = sample.labels.get("stage") or sample.labels.get("outcome", "")
                totals[sample.name, sample.labels["model"], sample.labels["version"], kind] += sample.value

    def statistics(*labels: str) -> Statistics:
        return Statistics(
            pictures=round(totals[_PICTURES, *labels, "OK"]),
            batches=round(totals[_BATCHES, *labels, ""]),
            answered=round(totals[_ANSWERED, *labels, ""]),
            failed=round(totals[_UNANSWERED, *labels, ""]),
            queue_ns=round(_NS * totals[_SECONDS, *labels, "queue"]),
            input_ns=round(_NS * totals[_SECONDS, *labels, "input"]),
            infer_ns=round(_NS * totals[_SECONDS, *labels, "inference"]),
        )

    return [statistics(name, str(version)) for name, version in versions]
