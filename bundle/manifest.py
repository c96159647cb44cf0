"""The manifest of a bundle, `bundle.json`: its parts as frozen dataclasses; load, check, save.

Read strictly: an unknown field, a wrong type or a nonsense value is a BundleError that names the field, what was
found and what was wanted. The part of it that decides an answer is `contract`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bundle.contract import IMAGES, LOGITS, SIMILARITY, STRICT, Contract, Cosine, first_problem
from bundle.errors import BundleError
from bundle.files import read_file

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "bundle.json"
MAX_MANIFEST_BYTES: Final = 16 * 2**20
_MAX_PARTS: Final = 100_000  # lists and objects: an empty one is two bytes here, and sixty in memory

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]  # no folder: nothing leaves the bundle
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX model file, and the answers that it gave to the golden pictures at export."""

    precision: Precision
    file: FileName
    sha256: Sha256
    golden_logits: tuple[tuple[float, ...], ...]  # (G, C)
    golden_similarity: tuple[Cosine, ...]  # (G,)
    tolerance: Annotated[float, Field(gt=0, le=1)]  # largest allowed difference of a golden probability
    logit_tolerance: Annotated[float, Field(gt=0)]  # the same of a logit: saturated probabilities hide a skew
    similarity_tolerance: Annotated[float, Field(gt=0, le=1)]  # the same of a similarity
    accuracy: Interval | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None  # one picture, one thread, exporting machine; not of fp16

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A model file that is proved at export, but that the server does not run."""

    runtime: Literal["torchscript", "torch.export", "portable"]
    file: FileName
    sha256: Sha256

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class GoldenPicture:
    """A held-out picture that travels in `golden/`."""

    file: FileName
    sha256: Sha256
    label: str  # the truth, not the model's answer

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One line of what the search for a faster variant tried, on the exporting machine; fp32 is the first."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    accuracy: Interval  # on the pictures that candidates were chosen on
    agreement: Annotated[float, Field(ge=0, le=1)]  # share of those pictures with fp32's best label
    latency_ms: Annotated[float, Field(gt=0)]  # one picture, one thread
    latency_batch8_ms: Annotated[float, Field(gt=0)]  # eight pictures together, one thread
    size_bytes: Annotated[int, Field(gt=0)]
    verdict: Annotated[str, Field(min_length=1, max_length=1024)]  # "kept", or why not

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model comes from."""

    backbone: str
    weights: str  # origin of the pretrained weights
    weights_licence: str
    data_fingerprint: str  # sha256 over the labels and sha256s of the training files
    split: str
    seed: int
    libraries: dict[str, str]
    commit: str | None = None
    fixes: str | None = None  # how many labels were corrected before training, and by which file

    __pydantic_config__ = STRICT


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that `bundle.json` says."""

    contract: Contract
    created: str  # ISO 8601, UTC
    variants: tuple[Variant, ...]
    twins: tuple[Twin, ...]
    golden: tuple[GoldenPicture, ...]
    metrics: dict[str, Interval]
    provenance: Provenance
    candidates: tuple[Candidate, ...] = ()  # for int8; empty where none was looked for
    format_version: int = field(default=FORMAT_VERSION)

    __pydantic_config__ = STRICT

    def variant(self, precision: str) -> Variant:
        """Return the variant of that precision; raises BundleError where there is none."""
        for candidate in self.variants:
            if candidate.precision == precision:
                return candidate
        name = f"{self.contract.name}/{self.contract.version}"
        if not self.variants:
            there = ", ".join(twin.runtime for twin in self.twins)
            raise BundleError(f"{name}: found {there} alone, wanted ONNX to run; export it with --onnx too")
        there = ", ".join(variant.precision for variant in self.variants)
        raise BundleError(f"{name}: no {precision} variant, found {there}; choose one of those")


_MANIFEST: Final = TypeAdapter(Manifest)


def to_json(manifest: Manifest) -> str:
    """Return the text of bundle.json; `from_json` reads it back equal."""
    return _MANIFEST.dump_json(manifest, indent=1, exclude_none=True).decode() + "\n"


def from_json(text: str | bytes, *, source: str) -> Manifest:
    """Read and check a manifest; raises BundleError that names the source and the field."""
    _check_format_version(text, source)
    try:
        manifest = _MANIFEST.validate_json(text, strict=True)
    except ValidationError as error:
        raise BundleError(f"{source}: {first_problem(error)}; export the bundle again") from error
    _check_consistency(manifest, source)
    return manifest


def load_manifest(folder: Path) -> Manifest:
    """Read and check folder/bundle.json; raises BundleError."""
    return from_json(manifest_bytes(folder), source=str(folder / MANIFEST_NAME))


def manifest_bytes(folder: Path) -> bytes:
    """Return folder/bundle.json as it stands, at most 16 MiB: what a signature is over. Raises BundleError."""
    path = folder / MANIFEST_NAME
    try:
        return read_file(path, max_bytes=MAX_MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; wanted a folder that `trainer export` wrote") from error


def _check_format_version(text: str | bytes, source: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") > _MAX_PARTS:
        raise BundleError(f"{source}: found more than {_MAX_PARTS:,} lists and objects; export the bundle again")
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{source}: not JSON ({error}); export the bundle again") from error
    found = document.get("format_version") if isinstance(document, dict) else None
    if found != FORMAT_VERSION:
        raise BundleError(
            f"{source}: format_version is {found!r}, wanted {FORMAT_VERSION}; "
            "use the release of Calotype that wrote it, or export the bundle again"
        )


def _check_consistency(manifest: Manifest, source: str) -> None:
    for is_wrong, text in (*_in_contract(manifest.contract), *_in_lists(manifest), *_in_golden_answers(manifest)):
        if is_wrong:
            raise BundleError(f"{source}: {text}; export the bundle again")


def _in_contract(contract: Contract) -> Iterator[tuple[bool, str]]:
    spec = contract.preprocess
    yield len(set(contract.labels)) != len(contract.labels), "contract.labels: found a label twice, wanted each once"
    yield (
        not (1 <= spec.crop_px <= spec.resize_px <= 4096),
        f"contract.preprocess: found crop_px {spec.crop_px} and resize_px {spec.resize_px}, "
        "wanted 1 <= crop_px <= resize_px <= 4096",
    )
    yield any(not 0 <= value <= 1 for value in contract.mean), f"contract.mean: found {contract.mean}, wanted 0..1"
    yield any(not 0 < value <= 1 for value in contract.std), f"contract.std: found {contract.std}, wanted 0..1, not 0"
    yield contract.input != IMAGES, f"contract.input: found {contract.input}, wanted {IMAGES}"
    yield contract.output != LOGITS, f"contract.output: found {contract.output}, wanted {LOGITS}"
    yield contract.similarity != SIMILARITY, f"contract.similarity: found {contract.similarity}, wanted {SIMILARITY}"


def _in_lists(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    yield not (manifest.variants or manifest.twins), "variants and twins: found none, wanted at least one model file"
    yield not manifest.golden, "golden: found none, wanted at least one picture"
    yield (
        any(picture.label not in manifest.contract.labels for picture in manifest.golden),
        "golden: found a label that contract.labels does not list",
    )
    names: dict[str, Sequence[str]] = {
        "variants: found a precision": [variant.precision for variant in manifest.variants],
        "candidates: found a name": [candidate.name for candidate in manifest.candidates],
        "golden: found a file": [picture.file for picture in manifest.golden],
    }
    for found, listed in names.items():
        yield len(set(listed)) != len(listed), f"{found} twice, wanted each once"


def _in_golden_answers(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    class_count, picture_count = len(manifest.contract.labels), len(manifest.golden)
    for variant in manifest.variants:
        place = f"variants.{variant.precision}"
        yield (
            [len(row) for row in variant.golden_logits] != [class_count] * picture_count
            or not all(math.isfinite(value) for row in variant.golden_logits for value in row),
            f"{place}.golden_logits: wanted {picture_count} rows of {class_count} numbers",
        )
        yield (
            len(variant.golden_similarity) != picture_count,
            f"{place}.golden_similarity: wanted {picture_count} numbers",
        )
