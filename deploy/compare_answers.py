"""Compare a running server's answers with those of the same bundles opened in this process.

Every label's score of every picture and model must agree within the tolerance that the bundle's golden pictures must
meet. Run as `python deploy/compare_answers.py ADDRESS MODELS PICTURE...`; exit 1 names the first answer that differs.
"""

import sys
from pathlib import Path

import typer

from bundle import golden
from bundle.errors import CalotypeError
from bundle.repository import model_names, newest
from bundle.runtime import OnnxModel
from bundle.scores import probabilities
from serving.client import Client


def main(address: str, models: Path, pictures: list[Path]) -> None:
    """Compare the answers to PICTURES of the server at ADDRESS, which serves the folder MODELS."""
    try:
        with Client(address) as client:
            for name in model_names(models):
                model = golden.open_proved(newest(models, name)).model  # the variant that a server chooses
                for picture in pictures:
                    typer.echo(f"{name}, {picture.name}: ", nl=False)
                    typer.echo(_compare(client, model, picture.read_bytes()))
    except CalotypeError as error:
        sys.exit(str(error))


def _compare(client: Client, model: OnnxModel, data: bytes) -> str:
    """Return the label and score on which both sides agree; exits where they do not."""
    contract, tolerance = model.bundle.manifest.contract, model.variant.tolerance
    output = golden.answers(model, [data], contract.preprocess)
    scores = probabilities(output.logits[0], temperature=contract.temperature)
    wanted = dict(zip(contract.labels, scores, strict=True))

    answer = client.classify([data], model=contract.name, top_k=len(wanted), timeout_s=30)
    (result,) = answer.results
    found = {one.label: one.score for one in result.predictions}
    if result.error:
        sys.exit(f"the server answers {result.error.code}: {result.error.message}")
    if answer.version != str(contract.version):
        sys.exit(f"version {answer.version} answers, wanted {contract.version}; the server's log says why")
    if found.keys() != wanted.keys():
        sys.exit(f"the server knows the labels {sorted(found)}, wanted {sorted(wanted)}")
    for label, score in wanted.items():
        if not abs(found[label] - score) <= tolerance:  # written so that NaN fails
            sys.exit(f"{label!r} has {found[label]:.6f}, in-process {score:.6f}; tolerance {tolerance:.0e}")
    best = result.predictions[0]
    if max(wanted.values()) - wanted[best.label] > tolerance:  # a tie within the tolerance may fall either way
        sys.exit(f"{best.label!r} ranks first, in-process {max(wanted, key=wanted.__getitem__)!r}")
    return f"{best.label} {best.score:.4f}, wanted {wanted[best.label]:.4f}"


if __name__ == "__main__":
    typer.run(main)
