"""The list of what went into a bundle: valid for any reader of CycloneDX, and the same for the same bundle."""

import json
from dataclasses import replace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from bundle.manifest import Manifest
from tests.bundle.tiny_bundle import make_contract, make_manifest
from trainer.sbom import to_cyclonedx


def manifest(**provenance: object) -> Manifest:
    made = make_manifest(make_contract())
    libraries = {"torch": "2.9.0+cpu", "numpy": "2.0.0"}
    return replace(made, provenance=replace(made.provenance, libraries=libraries, **provenance))


@pytest.mark.parametrize("commit", [None, "0123abc"])
@pytest.mark.parametrize("licence", ["Apache-2.0", "none", "see <the hub> & ask"])
def test_document_is_valid(licence: str, commit: str | None) -> None:
    """By the schema of CycloneDX 1.6, strictly; a licence that is no SPDX identifier goes by its name."""
    text = to_cyclonedx(manifest(weights_licence=licence, commit=commit))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    (weights,) = [part for part in json.loads(text)["components"] if part["bom-ref"] == "weights"]
    assert weights["licenses"] == [{"license": {"id" if licence == "Apache-2.0" else "name": licence}}]


def test_everything_that_went_in_is_listed() -> None:
    """Weights and their origin, the fingerprint of the data, each file's sha256, each library by purl, the commit."""
    made = manifest(commit="0123abc", weights="by hand")
    document = json.loads(to_cyclonedx(made))
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert parts["weights"]["description"] == "by hand"
    assert parts["data"]["properties"] == [{"name": "calotype:data_fingerprint", "value": "0" * 64}]
    assert parts["library:torch"]["purl"] == "pkg:pypi/torch@2.9.0%2Bcpu"
    hashes = {part["name"]: part["hashes"][0]["content"] for part in parts.values() if part["type"] == "file"}
    assert hashes == {
        "model.onnx": made.variants[0].sha256,
        "model.pt": made.twins[0].sha256,
        **{f"golden/{item.file}": item.sha256 for item in made.golden},
    }
    model = document["metadata"]["component"]
    assert (model["name"], model["version"]) == ("tiny", "1")
    assert {"name": "calotype:commit", "value": "0123abc"} in model["properties"]
    (depends,) = [entry["dependsOn"] for entry in document["dependencies"] if entry["ref"] == "model"]
    assert sorted(depends) == sorted(parts)


def test_equal_manifests_give_equal_bytes() -> None:
    """No clock and no chance; another manifest is another document."""
    assert to_cyclonedx(manifest()) == to_cyclonedx(manifest())
    serials = [json.loads(to_cyclonedx(manifest(seed=seed)))["serialNumber"] for seed in (0, 1)]
    assert serials[0] != serials[1]
