"""Find labels that are likely wrong, and write them to `fixes.csv` for a person to decide. Changes no picture.

Confident learning (Northcutt et al. 2021, arXiv:1911.00068; cleanlab) on out-of-fold probabilities: logistic regression
on the features of the run's backbone as it was before training, since features fine-tuned on wrong labels have learned
them. Folds keep duplicates and groups together, or a copy would vouch for its own label.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from trainer import checkpoint
from trainer.backbones import build
from trainer.checkpoint import APPLIED_FIXES
from trainer.data import SIDES, Picture
from trainer.errors import DataError
from trainer.fixes import Fix, read_fixes, write_fixes
from trainer.metrics import Floats, Ints, log_loss
from trainer.network import Deployed, all_features, choose_device
from trainer.pictures import EvaluationPictures, evaluation_loader
from trainer.probe import L2_GRID
from trainer.progress import Progress
from trainer.session import EVALUATION_BATCH

FOLDS: Final = 5
HARDEST: Final = 20  # errors that are listed though the label seems right


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What was found, and where it is written."""

    path: Path
    picture_count: int
    fixes: tuple[Fix, ...]  # likely label errors, the surest first; then the hardest errors, whose labels stay
    out_of_fold_accuracy: float


def clean(run_folder: Path, target: Path) -> Cleaned:
    """Look over all pictures of a run and write `target`; raises CheckpointError, WeightsError or DataError."""
    run = checkpoint.read_run(run_folder)
    if target.exists():
        raise DataError(f"{target}: is there already, perhaps edited; move it away, or write --to another file")
    sides = checkpoint.read_split(run_folder)
    pictures = tuple(picture for side in SIDES for picture in sides[side])
    labels = tuple(sorted({picture.label for picture in pictures}))
    targets = np.array([labels.index(picture.label) for picture in pictures], dtype=np.int64)
    progress = Progress()
    progress.say(f"computing features of {len(pictures):,} pictures with the backbone as it was before training")
    features = _features(run, pictures)
    progress.say(f"logistic regression, {FOLDS} folds")
    scores = out_of_fold(features, targets, [picture.cluster for picture in pictures], seed=run.config.seed)
    found = judge(pictures, scores, targets, labels=labels)
    applied = run_folder / APPLIED_FIXES
    fixes = _joined(read_fixes(applied).rows if applied.exists() else (), found)
    write_fixes(target, fixes)
    return Cleaned(
        path=target,
        picture_count=len(pictures),
        fixes=fixes,
        out_of_fold_accuracy=float((scores.argmax(1) == targets).mean()),
    )


def out_of_fold(features: NDArray[np.float32], targets: Ints, clusters: list[str], *, seed: int) -> Floats:
    """Return probabilities (N, C) for features (N, F), each row from a model that saw nothing of its cluster.

    Of the probe's strengths of regularisation the one with the least out-of-fold log-loss is taken.
    """
    fewest = min(len({cluster for cluster, at in zip(clusters, targets, strict=True) if at == c}) for c in set(targets))
    if fewest < 2:
        raise DataError("a class has only one picture besides its duplicates, wanted at least 2; add some")
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    scaled = (features - features.mean(0)) / max(1e-6, float(np.sqrt(features.var(0).mean())))
    parts = list(folds.split(scaled, targets, groups=clusters))
    candidates = []
    for l2 in L2_GRID:
        scores = np.zeros((len(targets), int(targets.max()) + 1))
        for train, held_out in parts:
            model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=1000).fit(scaled[train], targets[train])
            scores[np.ix_(held_out, model.classes_)] = model.predict_proba(scaled[held_out])
        candidates.append(scores)
    return min(candidates, key=lambda scores: log_loss(scores, targets))


def judge(pictures: tuple[Picture, ...], scores: Floats, targets: Ints, *, labels: tuple[str, ...]) -> tuple[Fix, ...]:
    """Return likely label errors with the answer as suggestion, then the hardest other errors with their own label."""
    answers = scores.argmax(1)
    issues = find_label_issues(targets, scores, return_indices_ranked_by="self_confidence", n_jobs=1)
    wrong = [int(index) for index in issues if answers[index] != targets[index]]
    own = scores[np.arange(len(targets)), targets]
    rest = [int(index) for index in np.argsort(own, kind="stable") if answers[index] != targets[index]]
    hard = [index for index in rest if index not in set(wrong)][:HARDEST]

    def fix(index: int, *, is_likely: bool) -> Fix:
        picture, answer = pictures[index], labels[answers[index]]
        return Fix(
            path=picture.path,
            label=picture.label,
            suggested_label=answer if is_likely else picture.label,
            confidence=float(scores[index].max()),
            reason="likely label error" if is_likely else f"hard: taken for {answer}",
        )

    return tuple([fix(index, is_likely=True) for index in wrong] + [fix(index, is_likely=False) for index in hard])


def _features(run: checkpoint.Run, pictures: tuple[Picture, ...]) -> NDArray[np.float32]:
    torch.manual_seed(run.config.seed)
    backbone = build(
        run.config.backbone, class_count=len(run.labels), weights=run.config.weights, image_size=run.config.image_size
    )
    device = choose_device(run.config.device, threads=run.config.threads)
    model = Deployed(backbone.model, backbone.mean, backbone.std).to(memory_format=torch.channels_last)
    loader = evaluation_loader(
        EvaluationPictures(pictures, [0] * len(pictures), run.spec),
        batch_size=EVALUATION_BATCH,
        workers=run.config.workers,
    )
    features: NDArray[np.float32] = all_features(model.to(device.name), loader, device)[0].numpy()
    return features


def _joined(applied: tuple[Fix, ...], found: tuple[Fix, ...]) -> tuple[Fix, ...]:
    """Return what was found, in terms of the labels that the data has, and the earlier changes that still hold.

    A run with fixes knows other labels than its folder, and `fit --apply` takes one file: so the new one holds all.
    """
    earlier = {fix.path: fix for fix in applied if fix.changes}
    now = tuple(replace(fix, label=earlier[fix.path].label) if fix.path in earlier else fix for fix in found)
    listed = {fix.path for fix in found}
    return now + tuple(replace(fix, reason="applied before") for path, fix in earlier.items() if path not in listed)
