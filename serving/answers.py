"""What a server answers, as values: read once from its messages. Knows no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protos import classifier_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One label of an answer; score is a calibrated probability, 0..1."""

    index: int
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class PictureError:
    """Why one picture got no answer; `code` as in classifier.proto, such as "TRUNCATED"."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one picture got: predictions, best first, or an error."""

    predictions: tuple[Prediction, ...] = ()
    unknown: bool = False  # unlike anything that the model was trained on
    error: PictureError | None = None


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The results of one request, in the order of its pictures, and the model that gave them."""

    results: tuple[Result, ...]
    model: str
    version: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One version of one model, as the server describes it."""

    name: str
    version: str
    state: str  # LOADING, READY, DRAINING or FAILED
    reason: str
    labels: tuple[str, ...]
    provider: str
    precision: str
    digest: str
    unknown_below: float  # similarity to the training pictures under which one is unknown, -1..1


class _Enum(Protocol):
    """What protoc makes of an enum."""

    def items(self) -> Sequence[tuple[str, int]]:
        """Return names and numbers."""


def enum_name(kind: _Enum, number: int) -> str:
    """Return the name of an enum's value, or the number of one that a newer server knows."""
    return next((name for name, value in kind.items() if value == number), str(number))


def read_classification(response: pb.ClassifyResponse) -> Classification:
    """Return what one request got."""
    results = tuple(_result(result) for result in response.results)
    return Classification(results=results, model=response.model, version=response.version)


def _result(result: pb.ImageResult) -> Result:
    if result.HasField("error"):
        code = enum_name(pb.ImageError.Code, result.error.code)
        return Result(error=PictureError(code=code, message=result.error.message))
    return Result(
        predictions=tuple(Prediction(index=one.index, label=one.label, score=one.score) for one in result.predictions),
        unknown=result.unknown,
    )


def read_models(response: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    """Return what the server knows."""
    return tuple(
        ModelInfo(
            name=model.name,
            version=model.version,
            state=enum_name(pb.Model.State, model.state),
            reason=model.reason,
            labels=tuple(model.labels),
            provider=model.provider,
            precision=model.precision,
            digest=model.digest,
            unknown_below=model.unknown_below,
        )
        for model in response.models
    )
