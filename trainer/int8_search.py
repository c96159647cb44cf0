"""Look for an INT8 form of an exported graph that is as right as fp32 and faster on this CPU, or say why there is none.

Calibrated on training pictures, chosen on validation pictures, confirmed on those of the export proof. Bounded: eight
recipes, then at most four more that keep the most sensitive blocks float; none is begun after BUDGET_S.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bundle.contract import Contract
from bundle.manifest import Candidate
from trainer.data import Picture
from trainer.int8_trials import Examination, Measure, Trial, answer, load_images, preferred, time_trials
from trainer.latency import interleaved_medians_ms
from trainer.quantize import PICTURES, Method, Quantizer, Recipe
from trainer.sensitivity import most_sensitive_blocks

BUDGET_S: Final = 90.0  # of this process's CPU time, so that a busy machine does not shorten the search
SELECTION_PICTURES: Final = 500
KEPT: Final = "kept"
_QUICK: Final[tuple[Method, ...]] = ("minmax", "percentile")
_RECIPES: Final = (
    *(Recipe(method=method, per_channel=True) for method in _QUICK),
    # The first layers suffer most from eight bits and gain least: on Lite0 and ants and bees the mean difference of a
    # probability falls from 0.46 to 0.36 points, all answers of 153 are fp32's for 151; one picture takes as long, a
    # batch of 8 5 % longer.
    *(Recipe(method=method, per_channel=True, float_blocks=(0,)) for method in _QUICK),
    *(Recipe(method=method, per_channel=False) for method in _QUICK),
    *(Recipe(method="entropy", per_channel=per_channel) for per_channel in (True, False)),  # slow: time may be over
)
_FLOAT_BLOCKS: Final = (1, 2, 4, 8)
_SENSITIVITY_PICTURES: Final = 16
_CONFIRMED: Final = 3  # the pictures of the proof say yes or no to the first few; they rank nothing


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The pictures that the search may look at."""

    calibration: tuple[Picture, ...]  # training side
    selection: tuple[Picture, ...]  # validation side
    confirmation: tuple[Picture, ...]  # those of the export proof


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search tried, fp32 first, and why it kept what it kept."""

    candidates: tuple[Candidate, ...]
    is_kept: bool
    reason: str
    seconds: float


def search(
    graph: Path,
    target: Path,
    *,
    contract: Contract,
    evidence: Evidence,
    say: Callable[[str], None] = lambda _: None,
    measure: Measure = interleaved_medians_ms,
) -> Found:
    """Write `target` where a candidate is right and faster; otherwise leave nothing there and return the reason."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="calotype-int8-") as scratch:
        pictures = stratified(evidence.calibration, max(PICTURES.values()))
        examination = Examination(stratified(evidence.selection, SELECTION_PICTURES), graph, contract=contract)
        say(f"int8: calibrating on {len(pictures)} training pictures, judging on {len(examination.targets)} others")
        quantizer = Quantizer(graph, Path(scratch), contract=contract, pictures=load_images(pictures, contract))
        workshop = _Workshop(quantizer, examination, Path(scratch), deadline=time.process_time() + BUDGET_S, say=say)
        recipes = [recipe for recipe in _RECIPES if len(recipe.float_blocks) < len(quantizer.blocks)]
        trials = time_trials([examination.reference, *workshop.try_all(recipes)], measure)
        if all(trial.objection for trial in trials[1:]):
            trials = _rescue(trials, workshop, measure=measure)
        reason, verdicts = _why_none(trials), dict[Path, str]()
        for trial in preferred(trials[1:])[:_CONFIRMED]:
            objection = _confirm(trial, evidence, graph, contract=contract)
            verdicts[trial.path] = objection or KEPT
            reason = f"fp32 alone: {trial.name}: {objection}"
            if not objection:
                shutil.copyfile(trial.path, target)
                reason = f"int8 kept: {trial.name}, {trial.speedups[0]:.2f} times as fast as fp32 on one picture"
                break
        lines = [trial.candidate(verdicts.get(trial.path, "")) for trial in trials]
    lines[0] = replace(lines[0], verdict="reference")
    return Found(
        candidates=tuple(lines),
        is_kept=KEPT in verdicts.values(),
        reason=reason,
        seconds=time.monotonic() - started,
    )


def stratified(pictures: Sequence[Picture], count: int) -> tuple[Picture, ...]:
    """Return at most count pictures, class after class in turn, in an order that depends on their contents alone."""
    by_label: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda item: item.sha256):
        by_label.setdefault(picture.label, []).append(picture)
    ranked = [(turn, item) for members in by_label.values() for turn, item in enumerate(members)]
    return tuple(item for _, item in sorted(ranked, key=lambda entry: (entry[0], entry[1].sha256))[:count])


class _Workshop:
    """Writes and examines recipes until the time is over."""

    def __init__(
        self,
        quantizer: Quantizer,
        examination: Examination,
        scratch: Path,
        *,
        deadline: float,
        say: Callable[[str], None],
    ) -> None:
        self._quantizer = quantizer
        self._examination = examination
        self._scratch = scratch
        self._deadline = deadline
        self._say = say
        self._count = 0

    def try_all(self, recipes: Sequence[Recipe]) -> list[Trial]:
        trials: list[Trial] = []
        for recipe in recipes:
            if trials and time.process_time() > self._deadline:
                self._say(f"int8: {BUDGET_S:g} CPU-seconds are over, leaving out {recipe.name} and what follows")
                break
            trials.append(self.attempt(recipe))
        return trials

    def attempt(self, recipe: Recipe) -> Trial:
        started, self._count = time.monotonic(), self._count + 1
        path = self._scratch / f"candidate{self._count}.onnx"
        self._quantizer.write(recipe, path)
        likeness = self._examination.likeness(path)
        self._say(
            f"int8: {recipe.name}: {likeness.hits} of {likeness.picture_count} right, "
            f"{likeness.agreement:.1%} as fp32, {time.monotonic() - started:.1f} s"
        )
        return Trial(name=recipe.name, path=path, likeness=likeness, recipe=recipe)

    def sensitive_blocks(self, recipe: Recipe, graph: Path) -> list[int]:
        images = self._quantizer.pictures[:_SENSITIVITY_PICTURES]
        self._say(f"int8: measuring how sensitive each of {len(self._quantizer.blocks)} blocks is")
        return most_sensitive_blocks(
            self._quantizer,
            recipe,
            wanted=answer(graph, images).logits,
            answer=lambda path: answer(path, images).logits,
            scratch=self._scratch,
        )


def _rescue(trials: list[Trial], workshop: _Workshop, *, measure: Measure) -> list[Trial]:
    """Keep the most sensitive blocks of the closest fast candidate float, more and more of them, until one is good."""
    fast = [trial for trial in trials[1:] if trial.likeness.objection == trial.objection]
    if not fast:
        return trials  # a graph that is slow in int8 does not become faster by keeping parts of it float
    closest = min(fast, key=lambda trial: trial.likeness.mean_difference)
    assert closest.recipe is not None
    order = workshop.sensitive_blocks(closest.recipe, trials[0].path)
    for count in _FLOAT_BLOCKS:
        if count >= len(order):
            break
        blocks = {*closest.recipe.float_blocks, *order[:count]}
        recipe = replace(closest.recipe, float_blocks=tuple(sorted(blocks)))
        if any(recipe == trial.recipe for trial in trials):
            continue
        (trial,) = workshop.try_all([recipe])
        trials = [*trials, time_trials([trials[0], trial], measure)[1]]
        if not trials[-1].objection:
            break
    return trials


def _confirm(best: Trial, evidence: Evidence, graph: Path, *, contract: Contract) -> str:
    """Return why the chosen candidate fails on the pictures of the proof; empty where it does not."""
    if evidence.confirmation == evidence.selection and len(evidence.selection) <= SELECTION_PICTURES:
        return ""  # the same ones: there is no test side
    objection = Examination(evidence.confirmation, graph, contract=contract).likeness(best.path).objection
    return f"on the pictures of the proof: {objection}" if objection else ""


def _why_none(trials: Sequence[Trial]) -> str:
    closest = min(trials[1:], key=lambda trial: trial.likeness.mean_difference)
    return f"fp32 alone: none of {len(trials) - 1} candidates is good; the closest, {closest.name}: {closest.objection}"
