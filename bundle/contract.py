"""What decides an answer: the part of a manifest that is repeated inside every model file of a bundle.

Twice, so that a label swapped in one place shows.
"""

import json
from dataclasses import dataclass, fields
from typing import Annotated, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bundle.errors import BundleError
from bundle.preprocess import PreprocessSpec

CONTRACT_KEY: Final = "calotype"  # metadata_props key in ONNX, extra file name in TorchScript
STRICT: Final = ConfigDict(extra="forbid", allow_inf_nan=False)
NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # of a model, and of its folder
VERSION_PATTERN: Final = r"[1-9][0-9]{0,8}"  # of the folder in it

ModelName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
Triple = tuple[float, float, float]
Cosine = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One end of the graph."""

    name: str
    dtype: str
    layout: str

    __pydantic_config__ = STRICT


IMAGES: Final = TensorSpec(name="images", dtype="uint8", layout="NHWC")
LOGITS: Final = TensorSpec(name="logits", dtype="float32", layout="NC")
SIMILARITY: Final = TensorSpec(name="similarity", dtype="float32", layout="N")  # to the training pictures, -1..1


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What decides an answer: it stands in the manifest and inside every model file."""

    name: ModelName
    version: Annotated[int, Field(ge=1)]
    labels: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...], Field(min_length=2)]
    preprocess: PreprocessSpec
    input: TensorSpec = IMAGES
    output: TensorSpec = LOGITS
    similarity: TensorSpec = SIMILARITY
    mean: Triple  # of the 0..1 range, RGB; for the record, since normalisation is inside the graph
    std: Triple
    temperature: Annotated[float, Field(gt=0)] = 1.0
    unknown_below: Cosine  # similarity under which a picture is unlike anything the model was trained on

    __pydantic_config__ = STRICT


_CONTRACT: Final = TypeAdapter(Contract)


def contract_to_json(contract: Contract) -> str:
    """Return the text that is embedded in model files; equal contracts give equal text."""
    return json.dumps(_CONTRACT.dump_python(contract, mode="json"), sort_keys=True, ensure_ascii=True)


def check_embedded(contract: Contract, embedded: str | None, *, source: str) -> None:
    """Raise BundleError unless a model file carries the manifest's own contract."""
    if embedded is None:
        raise BundleError(f"{source}: no {CONTRACT_KEY!r} metadata in the model file; export the bundle again")
    try:
        inside = _CONTRACT.validate_json(embedded, strict=True)
    except ValidationError as error:
        raise BundleError(f"{source}: metadata in the model file: {first_problem(error)}") from error
    for part in fields(Contract):
        here, there = getattr(contract, part.name), getattr(inside, part.name)
        if here != there:
            raise BundleError(
                f"{source}: manifest and model file disagree on {part.name}: {_brief(here)} here, {_brief(there)} "
                "inside the model; one of them was changed after export, export the bundle again"
            )


def first_problem(error: ValidationError) -> str:
    """Return what pydantic found and wanted first, with the field's name."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "document"
    return f"{where}: found {_brief(problem['input'])}, wanted: {problem['msg'].lower()}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
