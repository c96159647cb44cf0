"""What a run (torch) or a bundle (ONNX Runtime) answers to labelled pictures: the ground of every measurement."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bundle.golden import open_proved
from bundle.manifest import MANIFEST_NAME
from bundle.repository import load_bundle
from bundle.runtime import Choice
from bundle.scores import probabilities
from trainer import checkpoint
from trainer.config import FitConfig
from trainer.data import Picture, is_split, load_dataset, load_labelled
from trainer.errors import ConfigError, DataError
from trainer.metrics import Floats, Ints, Logits, fit_temperature
from trainer.network import Mirrored, all_logits, choose_device
from trainer.pictures import EvaluationPictures, evaluation_loader
from trainer.progress import Progress
from trainer.session import EVALUATION_BATCH, restore_model
from trainer.variants import bundle_output


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Logits (N, C) for N pictures, and how they become scores."""

    pictures: tuple[Picture, ...]
    labels: tuple[str, ...]
    logits: Logits
    temperature: float
    fitted_on: str  # which pictures the temperature was chosen on
    trained_on: frozenset[str]  # sha256s, where the target knows them: a run does, a bundle does not

    @property
    def targets(self) -> Ints:
        """The true label index of every picture, (N,)."""
        place = {label: index for index, label in enumerate(self.labels)}
        return np.array([place[picture.label] for picture in self.pictures], dtype=np.int64)

    @property
    def scores(self) -> Floats:
        """Calibrated probabilities (N, C)."""
        return probabilities(self.logits, temperature=self.temperature)

    @property
    def seen_count(self) -> int:
        """How many of the pictures the target was trained on."""
        return sum(picture.sha256 in self.trained_on for picture in self.pictures)

    def sorted_by_content(self) -> "Answers":
        """Return the same answers in an order that is the same for every model."""
        order = sorted(range(len(self.pictures)), key=lambda row: (self.pictures[row].sha256, self.pictures[row].label))
        return replace(self, pictures=tuple(self.pictures[row] for row in order), logits=self.logits[order])


def answer(target: Path, data: Path | None, *, variant: Choice = "fp32", tta: bool = False) -> Answers:
    """Ask a run, or that variant of a bundle, about labelled pictures; without `data` a run about its held-out side.

    With `tta` a run's logits are the mean over each picture and its mirror image. Raises CheckpointError, BundleError,
    DataError, or ConfigError for `tta` on a bundle, which answers as in production.
    """
    if (target / MANIFEST_NAME).exists():
        if data is None:
            raise DataError(f"{target}: a bundle holds no pictures out by itself; name DATA too")
        if tta:
            raise ConfigError(f"{target}: a bundle answers as in production, without --tta; name the run instead")
        return _bundle_answers(target, data, variant=variant)
    return _run_answers(target, data, tta=tta)


def _bundle_answers(target: Path, data: Path, *, variant: Choice) -> Answers:
    bundle = load_bundle(target)
    proved = open_proved(bundle, precision=variant)
    if proved.refused:
        Progress().say(f"answering with fp32: {proved.refused}")
    contract = bundle.manifest.contract
    pictures = _pictures(data, contract.labels)
    return Answers(
        pictures=pictures,
        labels=contract.labels,
        logits=bundle_output(bundle, pictures, precision=proved.model.variant.precision).logits,
        temperature=contract.temperature,
        fitted_on="validation, at export",
        trained_on=frozenset(),
    )


def _run_answers(target: Path, data: Path | None, *, tta: bool) -> Answers:
    run = checkpoint.read_run(target)
    sides = checkpoint.read_split(target)
    is_own = data is None or Path(run.data) == data.resolve()
    pictures = sides["test"] or sides["val"] if is_own or data is None else _pictures(data, run.labels)
    _, tensors = checkpoint.load(target, "best")
    device = choose_device(run.config.device, threads=run.config.threads)
    model = restore_model(run, tensors).to(device.name)

    def logits(asked: tuple[Picture, ...]) -> Logits:
        indices = [run.labels.index(picture.label) for picture in asked]
        loader = evaluation_loader(EvaluationPictures(asked, indices, run.spec), batch_size=EVALUATION_BATCH, workers=0)
        return all_logits(Mirrored(model) if tta else model, loader, device)[0].numpy()

    found = logits(pictures)
    is_validation = pictures == sides["val"]
    validation = found if is_validation else logits(sides["val"])
    targets = np.array([run.labels.index(picture.label) for picture in sides["val"]])
    temperature = fit_temperature(validation.astype(np.float64), targets)
    return Answers(
        pictures=pictures,
        labels=run.labels,
        logits=found,
        temperature=temperature,
        fitted_on=f"{len(targets)} validation pictures" + (": these" if is_validation else ""),
        trained_on=frozenset(picture.sha256 for picture in sides["train"]),
    )


def _pictures(data: Path, labels: tuple[str, ...]) -> tuple[Picture, ...]:
    """Return the pictures to measure on: of a split data set test or val, of another all."""
    max_bad = FitConfig().max_bad
    if is_split(data):
        dataset = load_dataset(data, seed=0, val_share=0.1, test_share=0.1, max_bad=max_bad, labels=labels)
        return dataset.sides[dataset.held_out()]
    return load_labelled(data, labels, max_bad=max_bad)
