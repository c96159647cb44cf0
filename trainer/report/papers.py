"""The papers of a bundle: its report, and its model card, written from the manifest alone.

The card's front matter is Hugging Face's (huggingface.co/docs/hub/model-cards), so that a model can be uploaded as it
is. Every value is escaped for Markdown before it gets into the text: labels come from whoever named the folders.
"""

import re
from pathlib import Path
from typing import Final

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from bundle.manifest import Manifest
from trainer.proof import Parity
from trainer.report.collect import BundleFacts
from trainer.report.render import REPORT_NAME, try_write_report

CARD_NAME: Final = "MODEL_CARD.md"
_SPECIAL: Final = re.compile(r"([\\`*_\[\]{}()<>#|~!&])")
_HUB_LICENCES: Final = ("apache-2.0", "bsd-3-clause", "cc0-1.0", "mit")  # of those that its list knows, what we meet


def write_papers(folder: Path, run_folder: Path, manifest: Manifest, *, parity: tuple[Parity, ...]) -> None:
    """Write MODEL_CARD.md and report.html into a bundle that has been proved, before it gets its name."""
    (folder / CARD_NAME).write_text(model_card(manifest), encoding="utf-8")
    files = [variant.file for variant in manifest.variants] + [twin.file for twin in manifest.twins]
    sizes = {file: (folder / file).stat().st_size for file in files}
    facts = BundleFacts(manifest=manifest, parity=parity, sizes=sizes)
    try_write_report(run_folder, folder / REPORT_NAME, bundle=facts)


def model_card(manifest: Manifest) -> str:
    """Return the card: front matter, then Markdown."""
    environment = jinja2.Environment(  # noqa: S701 -- not HTML: `markdown` escapes every value
        loader=jinja2.PackageLoader("trainer.report", "."),
        finalize=markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    body = environment.get_template("card.md").render(
        manifest=manifest, contract=manifest.contract, provenance=manifest.provenance
    )
    return f"---\n{_front_matter(manifest)}\n---\n\n{body}"


def markdown(value: object) -> str:
    """Return a value as Markdown that shows it letter for letter, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split())).replace(r"\<", "&lt;").replace(r"\&", "&amp;")


def _front_matter(manifest: Manifest) -> str:
    provenance, top1 = manifest.provenance, manifest.metrics.get("top-1")
    licence = provenance.weights_licence.lower()
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=f"held-out pictures, training data {provenance.data_fingerprint[:12]}",
            metric_type="accuracy",
            metric_value=round(top1.value, 4),
        )
    ] if top1 else None  # fmt: skip
    data = ModelCardData(
        license=licence if licence in _HUB_LICENCES else "other",
        license_name=None if licence in _HUB_LICENCES else provenance.weights_licence,
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["calotype", "image-classification", provenance.backbone],
        metrics=["accuracy"],
        model_name=manifest.contract.name,
        eval_results=results,
    )
    return data.to_yaml().strip()
