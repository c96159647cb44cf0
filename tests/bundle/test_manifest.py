"""bundle.json is read back equal, or refused by the name of the field."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.contract import Contract, TensorSpec, check_embedded, contract_to_json
from bundle.errors import BundleError
from bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Candidate,
    GoldenPicture,
    Interval,
    Manifest,
    Provenance,
    Twin,
    Variant,
    from_json,
    load_manifest,
    to_json,
)
from bundle.preprocess import PreprocessSpec
from tests.bundle.tiny_bundle import make_contract, make_manifest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
SHA256S = st.text("0123456789abcdef", min_size=64, max_size=64)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
FRACTIONS = st.floats(0, 1)
COSINES = st.floats(-1, 1)
INTERVALS = st.builds(Interval, value=NUMBERS, low=NUMBERS, high=NUMBERS)

RUNTIMES = st.sampled_from(["torchscript", "torch.export", "portable"])


CANDIDATES = st.builds(
    Candidate,
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    accuracy=INTERVALS,
    agreement=FRACTIONS,
    latency_ms=st.floats(0.001, 1e6),
    latency_batch8_ms=st.floats(0.001, 1e6),
    size_bytes=st.integers(1, 2**40),
    verdict=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)


@st.composite
def specs(draw: st.DrawFn) -> PreprocessSpec:
    resize_px = draw(st.integers(1, 4096))
    interpolation = draw(st.sampled_from(["bicubic", "bilinear"]))
    return PreprocessSpec(resize_px=resize_px, crop_px=draw(st.integers(1, resize_px)), interpolation=interpolation)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    labels = tuple(
        draw(
            st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=4, unique=True)
        )
    )
    contract = Contract(
        name=draw(NAMES),
        version=draw(st.integers(1, 10**9)),
        labels=labels,
        preprocess=draw(specs()),
        mean=draw(st.tuples(FRACTIONS, FRACTIONS, FRACTIONS)),
        std=draw(st.tuples(*[st.floats(0, 1, exclude_min=True)] * 3)),
        temperature=draw(st.floats(0.01, 100)),
        unknown_below=draw(COSINES),
    )
    pictures = st.builds(GoldenPicture, file=NAMES, sha256=SHA256S, label=st.sampled_from(labels))
    golden = tuple(draw(st.lists(pictures, min_size=1, max_size=3, unique_by=lambda item: item.file)))
    rows = st.lists(st.tuples(*[NUMBERS] * len(labels)), min_size=len(golden), max_size=len(golden)).map(tuple)
    variants = st.builds(
        Variant,
        precision=st.sampled_from(["fp32", "fp16", "int8"]),
        file=NAMES,
        sha256=SHA256S,
        golden_logits=rows,
        golden_similarity=st.tuples(*[COSINES] * len(golden)),
        tolerance=st.floats(0, 1, exclude_min=True),
        logit_tolerance=st.floats(0, 9, exclude_min=True),
        similarity_tolerance=st.floats(0, 1, exclude_min=True),
        accuracy=st.none() | INTERVALS,
        latency_ms=st.none() | st.floats(0.001, 1e6),
    )
    return Manifest(
        contract=contract,
        created=draw(TEXT),
        variants=tuple(draw(st.lists(variants, min_size=1, max_size=2, unique_by=lambda one: one.precision))),
        twins=tuple(draw(st.lists(st.builds(Twin, runtime=RUNTIMES, file=NAMES, sha256=SHA256S)))),
        golden=golden,
        metrics=draw(st.dictionaries(TEXT, INTERVALS, max_size=2)),
        provenance=draw(
            st.builds(
                Provenance,
                **dict.fromkeys(("backbone", "weights", "weights_licence", "data_fingerprint", "split"), TEXT),
                seed=st.integers(0, 2**63 - 1),
                libraries=st.dictionaries(TEXT, TEXT, max_size=2),
                commit=st.none() | TEXT,
            )
        ),
        candidates=tuple(draw(st.lists(CANDIDATES, max_size=2, unique_by=lambda one: one.name))),
    )


@given(manifests())
def test_a_manifest_is_read_back_equal(manifest):
    """Every float keeps its last bit and every label its spelling."""
    assert from_json(to_json(manifest), source="memory") == manifest


@given(manifests())
def test_an_embedded_contract_is_recognised(manifest):
    """What export writes into a model is what opening it expects."""
    check_embedded(manifest.contract, contract_to_json(manifest.contract), source="memory")


Edit = Callable[[dict[str, Any]], object]


def refusal(edit: Edit) -> str:
    document = json.loads(to_json(make_manifest(make_contract())))
    edit(document)
    with pytest.raises(BundleError) as refused:
        from_json(json.dumps(document), source="some/bundle.json")
    assert str(refused.value).startswith("some/bundle.json: ")
    return str(refused.value)


def put(path: str, value: object) -> Edit:
    """Return an edit that sets one field, named by its dotted path."""

    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = document
        for key in parents:
            node = node[int(key) if isinstance(node, list) else key]
        node[int(last) if isinstance(node, list) else last] = value

    return edit


def paths(node: object, prefix: str = "") -> list[str]:
    """Return the dotted path of every object in a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    below = [path for key, value in items for path in paths(value, f"{prefix}{key}.")]
    return ([prefix] if isinstance(node, dict) else []) + below


OBJECTS = [
    path
    for path in paths(json.loads(to_json(make_manifest(make_contract()))))
    if path not in ("metrics.", "provenance.libraries.")
]


@pytest.mark.parametrize("path", OBJECTS)
def test_an_unknown_field_is_named(path: str):
    """At every depth, the preprocessing included."""
    assert f"{path}surprise: found 1" in refusal(put(f"{path}surprise", 1))


def test_a_variant_twice_is_refused():
    """Or `auto` would not know which of the two it means."""
    assert "variants: found a precision twice" in refusal(
        lambda document: document["variants"].append(document["variants"][0])
    )


REQUIRED = ["contract", "created", "variants", "twins", "golden", "metrics", "provenance"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name: str):
    """A manifest is whole or refused."""
    assert f"{name}: " in refusal(lambda document: document.pop(name))


@pytest.mark.parametrize("name", ["name", "version", "labels", "preprocess", "mean", "std"])
def test_a_missing_field_of_the_contract_is_named(name: str):
    """The dotted path leads to it."""
    assert f"contract.{name}: " in refusal(lambda document: document["contract"].pop(name))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("contract", []),
        ("contract.version", "1"),
        ("contract.version", True),
        ("contract.version", 1.5),
        ("contract.labels", "dark"),
        ("contract.labels.1", 7),
        ("contract.mean", [0.5, 0.5]),
        ("contract.preprocess.crop_px", "224"),
        ("contract.preprocess.interpolation", "nearest"),
        ("contract.preprocess.decode_rule", "pillow-2"),
        ("variants.0.golden_logits.0.0", "4"),
        ("variants.0.golden_similarity", None),
        ("contract.unknown_below", None),
        ("variants.0.accuracy.low", None),
        ("variants.0.precision", "fp64"),
        ("twins.0.runtime", "onnx"),
        ("provenance.seed", "0"),
        ("provenance.libraries.onnx", 1),
        ("metrics.top1", 1.0),
        ("candidates.0.size_bytes", "9"),
        ("candidates.0.accuracy", 0.9),
    ],
)
def test_a_wrong_type_is_named(path: str, value: object):
    """With its path, what was found and what was wanted."""
    text = refusal(put(path, value))
    assert f"{path}" in text
    assert "found " in text
    assert "wanted: " in text


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("contract.version", 0, "contract.version"),
        ("contract.temperature", 0, "contract.temperature"),
        ("contract.temperature", -1.0, "contract.temperature"),
        ("contract.temperature", float("nan"), "contract.temperature"),
        ("contract.temperature", float("inf"), "contract.temperature"),
        ("contract.unknown_below", 1.5, "contract.unknown_below"),
        ("contract.labels", ["one"], "contract.labels"),
        ("contract.labels", ["same", "same"], "contract.labels: found a label twice"),
        ("contract.labels.0", "", "contract.labels.0"),
        ("contract.preprocess.crop_px", 9, "contract.preprocess: found crop_px 9 and resize_px 8"),
        ("contract.preprocess.crop_px", 0, "contract.preprocess"),
        ("contract.preprocess.resize_px", 5000, "contract.preprocess"),
        ("contract.mean.0", 123.7, "contract.mean"),
        ("contract.std.2", 0.0, "contract.std"),
        ("contract.input.layout", "NCHW", "contract.input"),
        ("contract.output.name", "scores", "contract.output"),
        ("contract.similarity.name", "likeness", "contract.similarity"),
        ("variants.0.tolerance", 0, "variants.0.tolerance"),
        ("variants.0.tolerance", 2, "variants.0.tolerance"),
        ("variants.0.logit_tolerance", 0, "variants.0.logit_tolerance"),
        ("variants.0.similarity_tolerance", 0, "variants.0.similarity_tolerance"),
        ("variants.0.golden_similarity.0", 1.5, "variants.0.golden_similarity.0"),
        ("variants.0.golden_similarity", [1.0], "variants.fp32.golden_similarity: wanted 3 numbers"),
        ("variants.0.latency_ms", 0, "variants.0.latency_ms"),
        ("variants.0.sha256", "A" * 64, "variants.0.sha256"),
        ("variants.0.golden_logits.0.0", float("inf"), "variants.0.golden_logits.0.0"),
        ("variants.0.golden_logits.0", [1.0], "variants.fp32.golden_logits: wanted 3 rows of 2 numbers"),
        ("variants.0.golden_logits", [[1.0, 2.0]], "variants.fp32.golden_logits: wanted 3 rows of 2 numbers"),
        ("candidates.0.agreement", 1.5, "candidates.0.agreement"),
        ("candidates.0.latency_ms", 0, "candidates.0.latency_ms"),
        ("candidates.0.verdict", "", "candidates.0.verdict"),
        ("candidates.1.name", "fp32", "candidates: found a name twice"),
        ("golden.0.label", "medium", "golden: found a label"),
        ("golden", [], "golden: found none"),
    ],
)
def test_a_nonsense_value_is_named(path: str, value: object, named: str):
    """Right in type, wrong in sense."""
    assert named in refusal(put(path, value))


def test_a_bundle_without_any_model_file_is_named():
    """TorchScript alone is a bundle, nothing at all is none."""
    put("variants", [])(document := json.loads(to_json(make_manifest(make_contract()))))
    alone = from_json(json.dumps(document), source="here")
    with pytest.raises(BundleError, match="tiny/1: found torchscript alone, wanted ONNX to run"):
        alone.variant("fp32")
    put("twins", [])(document)
    with pytest.raises(BundleError, match="variants and twins: found none"):
        from_json(json.dumps(document), source="here")


@pytest.mark.parametrize("path", ["variants.0.file", "twins.0.file", "golden.0.file", "contract.name"])
@pytest.mark.parametrize(
    "value", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", ".hidden", "a\n", "a\0", "x" * 200, "é"]
)
def test_a_name_that_leaves_the_folder_is_refused(path: str, value: str):
    """File and model names hold no folder, no dots in front and nothing unprintable."""
    assert f"{path}: found " in refusal(put(path, value))


@pytest.mark.parametrize("found", [0, 2, "1", None, [1]])
def test_another_format_version_is_named(found: object):
    """A manifest of another release is not guessed at."""
    assert f"format_version is {found!r}, wanted 1" in refusal(put("format_version", found))


def test_a_missing_format_version_is_named():
    """Without a version nothing else is read."""
    assert "format_version is None" in refusal(lambda document: document.pop("format_version"))


@pytest.mark.parametrize("found", [True, 1.0])
def test_a_format_version_that_only_equals_one_is_named(found: object):
    """True and 1.0 equal 1 in Python, and are not it in JSON."""
    assert "format_version: found" in refusal(put("format_version", found))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff\xfe", "null trailing"])
def test_what_is_not_json_is_refused(text: str | bytes):
    """Half a file, deep nesting and other encodings are expected errors."""
    with pytest.raises(BundleError, match="not JSON"):
        from_json(text, source="memory")


@pytest.mark.parametrize("text", ["null", "[]", "1", '"text"'])
def test_json_that_is_no_object_is_refused(text: str):
    """It has no format_version."""
    with pytest.raises(BundleError, match="format_version is None"):
        from_json(text, source="memory")


def test_a_lone_surrogate_in_a_label_is_refused():
    """JSON can spell a text that no program can print."""
    text = to_json(make_manifest(make_contract())).replace('"dark"', '"\\ud800"')
    with pytest.raises(BundleError):
        from_json(text, source="memory")


def test_a_manifest_is_read_from_its_folder(tmp_path: Path):
    """load_manifest reads folder/bundle.json."""
    manifest = make_manifest(make_contract())
    (tmp_path / MANIFEST_NAME).write_text(to_json(manifest), encoding="utf-8")
    assert load_manifest(tmp_path) == manifest


def test_a_huge_manifest_is_refused_unread(tmp_path: Path):
    """The size is checked before the content."""
    with (tmp_path / MANIFEST_NAME).open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="16,777,217 bytes, wanted at most 16,777,216"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("part", ["[]", "{}"])
def test_a_manifest_of_nothing_but_lists_is_refused_unread(part):
    """A few MB of them are half a GB of objects."""
    with pytest.raises(BundleError, match="more than 100,000 lists and objects"):
        from_json('{"a": [' + f"{part}," * 100_000 + f"{part}]}}", source="memory")


def test_a_golden_file_is_listed_once():
    """Or one file would be replayed as often as a manifest can say its name."""
    manifest = make_manifest(make_contract())
    text = to_json(replace(manifest, golden=(manifest.golden[0],) * len(manifest.golden)))
    with pytest.raises(BundleError, match="golden: found a file twice"):
        from_json(text, source="memory")


OTHERS = {
    "name": "other",
    "version": 2,
    "labels": ("light", "dark"),
    "preprocess": PreprocessSpec(resize_px=9, crop_px=4),
    "input": TensorSpec(name="x", dtype="uint8", layout="NHWC"),
    "output": TensorSpec(name="y", dtype="float32", layout="NC"),
    "mean": (0.1, 0.0, 0.0),
    "std": (0.5, 1.0, 1.0),
    "temperature": 2.0,
    "unknown_below": 0.25,
    "similarity": TensorSpec(name="z", dtype="float32", layout="N"),
}


@pytest.mark.parametrize("name", [part.name for part in fields(Contract)])
def test_the_field_that_differs_inside_the_model_is_named(name: str):
    """Every field of a contract is compared, the new ones too."""
    contract = make_contract()
    other = replace(contract, **{name: OTHERS[name]})
    with pytest.raises(BundleError, match=f"disagree on {name}: "):
        check_embedded(contract, contract_to_json(other), source="model.onnx")
