"""What went into a bundle, as machines read it: `sbom.json`, CycloneDX 1.6, made from the manifest and nothing else.

The model is the subject; its files, the pretrained weights, the training pictures (by fingerprint, they do not travel)
and the libraries are its parts. Equal manifests give equal bytes, so SOURCE_DATE_EPOCH holds here as it does there.
"""

import datetime
import uuid
from pathlib import Path
from typing import Final

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import is_supported_id
from packageurl import PackageURL

from bundle import __version__
from bundle.manifest import Manifest, to_json
from bundle.repository import listed_files

SBOM_NAME: Final = "sbom.json"


def write_sbom(folder: Path, manifest: Manifest) -> None:
    """Write folder/sbom.json, listing what went into the bundle; raises OSError."""
    (folder / SBOM_NAME).write_text(to_cyclonedx(manifest) + "\n", encoding="utf-8")


def to_cyclonedx(manifest: Manifest) -> str:
    """Return a manifest's list of parts as CycloneDX 1.6 JSON."""
    contract = manifest.contract
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=contract.name,
        version=str(contract.version),
        bom_ref="model",
        properties=_properties(manifest),
    )
    parts = [_weights(manifest), _data(manifest), *_files(manifest), *_libraries(manifest)]
    bom = Bom(
        components=parts,
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, to_json(manifest)),
        metadata=BomMetaData(
            timestamp=datetime.datetime.fromisoformat(manifest.created),
            component=model,
            tools=ToolRepository(
                components=[Component(type=ComponentType.APPLICATION, name="calotype", version=__version__)]
            ),
        ),
    )
    bom.register_dependency(model, parts)
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return text


def _properties(manifest: Manifest) -> list[Property]:
    provenance = manifest.provenance
    facts = {"backbone": provenance.backbone, "split": provenance.split, "seed": str(provenance.seed)}
    facts |= {"commit": provenance.commit} if provenance.commit else {}
    facts |= {"fixes": provenance.fixes} if provenance.fixes else {}
    return [Property(name=f"calotype:{name}", value=value) for name, value in facts.items()]


def _weights(manifest: Manifest) -> Component:
    licence = manifest.provenance.weights_licence
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name="pretrained weights",
        bom_ref="weights",
        description=manifest.provenance.weights,
        licenses=[DisjunctiveLicense(id=licence) if is_supported_id(licence) else DisjunctiveLicense(name=licence)],
    )


def _data(manifest: Manifest) -> Component:
    fingerprint = manifest.provenance.data_fingerprint
    return Component(
        type=ComponentType.DATA,
        name="training pictures",
        bom_ref="data",
        properties=[Property(name="calotype:data_fingerprint", value=fingerprint)],  # not of one file, so no hash
    )


def _files(manifest: Manifest) -> list[Component]:
    return [
        Component(
            type=ComponentType.FILE,
            name=file,
            bom_ref=f"file:{file}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        )
        for file, sha256 in listed_files(manifest).items()
    ]


def _libraries(manifest: Manifest) -> list[Component]:
    return [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"library:{name}",
            purl=PackageURL(type="pypi", name=name, version=version),
        )
        for name, version in manifest.provenance.libraries.items()
    ]
