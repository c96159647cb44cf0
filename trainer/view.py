"""The linear probe, on the backbone's own centre crop and on a closer one: validation says which.

A network pretrained on random crops saw things larger there than a centre crop shows them, and sees best what is about
1.3 times as large (Touvron et al. 2019, arXiv:1906.06423, section 3). Larger pictures would do, at their cost; a closer
crop costs the network nothing (some large JPEGs are decoded at twice the scale), but what lies at the edge is lost.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from bundle.preprocess import PreprocessSpec
from trainer.decoded import forget
from trainer.probe import Probe, fit_probe
from trainer.session import Session

CLOSER: Final = 0.8  # of the share of the shorter side that the backbone's own crop keeps
LEAST_GAIN: Final = 0.005  # nats a picture: between two crops that are as good as perfect the wider one stays
_BUDGET_SHARE: Final = 0.1  # of what is left of a time budget, for the closer look


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One crop, and the probe on it."""

    spec: PreprocessSpec
    probe: Probe
    logits: Tensor  # (N, C) of validation
    losses: Tensor  # (N,) of validation, nats
    val_seconds: float  # of once over the validation side
    is_choice: bool = False  # whether validation has chosen it, of two

    @property
    def crop_pct(self) -> float:
        """Which share of the shorter side it keeps."""
        return self.spec.crop_px / self.spec.resize_px

    def beats(self, other: "View") -> bool:
        """Say whether its log-loss is lower, by LEAST_GAIN and by one standard error of the pictures' differences.

        The one-standard-error rule (Breiman et al. 1984, "Classification and regression trees"). Of two crops that are
        equally good it takes the closer one by luck in one of six runs.
        """
        gains = other.losses - self.losses
        return float(gains.mean()) > max(LEAST_GAIN, float(gains.std()) / math.sqrt(len(gains)))


def choose_view(session: Session) -> View:
    """Look once, or twice; return the view that is kept, whose spec the session has from now on."""
    began = session.clock()
    own = _look(session, session.run.spec)
    if not _may_look_closer(session, looked_s=session.clock() - began):
        return own
    spec = own.spec
    closer = _look(session, replace(spec, resize_px=round(spec.resize_px / CLOSER)))
    better = session.world.from_first(lambda: closer.beats(own))
    session.progress.say(
        f"a closer look, at the central {closer.crop_pct:.0%} of the shorter side instead of {own.crop_pct:.0%}: "
        f"log-loss {closer.probe.log_loss:.4f} instead of {own.probe.log_loss:.4f}: {'kept' if better else 'not kept'}"
    )
    chosen, other = (closer, own) if better else (own, closer)
    session.run = replace(session.run, spec=chosen.spec)
    if session.decoded is not None:
        forget(session.decoded, cover_px=other.spec.resize_px)
    return replace(chosen, is_choice=True)


def _may_look_closer(session: Session, *, looked_s: float) -> bool:
    config = session.run.config
    if config.crop_pct is not None or config.weights == "none":
        return False
    return config.time_budget is None or looked_s < _BUDGET_SHARE * (config.time_budget - session.used_seconds())


def _look(session: Session, spec: PreprocessSpec) -> View:
    session.run = replace(session.run, spec=spec)
    train = session.features("train")
    started = session.clock()
    features, targets = session.features("val")
    val_seconds = session.clock() - started
    probe = session.world.from_first(
        lambda: fit_probe(*train, features, targets, class_weights=session.class_weights())
    )
    with torch.no_grad():
        logits = features @ probe.weight.T + probe.bias
    losses = F.cross_entropy(logits, targets, reduction="none")
    return View(spec=spec, probe=probe, logits=logits, losses=losses, val_seconds=val_seconds)
