"""Keep one model's shelf in line with its folder: load what is new, prove it, choose what answers, let go of the rest.

A version that fails is remembered with its reason and never serves; it is tried again when its folder changes, or after
a minute where the machine was short of something. Knows no requests.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from bundle.errors import BundleError, CalotypeError
from bundle.repository import is_empty, versions
from serving.classifier import ServedModel
from serving.complaints import Complaints
from serving.glimpses import Glimpses
from serving.memory import return_memory
from serving.reasons import plain_line, public_reason, worth_a_try_at
from serving.shelves import Entry, Shelf, Shelves, fingerprint
from serving.wishes import Wishes

log = structlog.get_logger(__name__)


class Upkeep:
    """What is done to the shelves, model by model. `choose` and `let_go` may be called while another thread loads."""

    def __init__(
        self,
        models: Path,
        load: Callable[[Path], ServedModel],
        *,
        shelves: Shelves,
        wishes: Wishes,
        complaints: Complaints,
        keep: int,
        on_refused: Callable[[str], None],
    ) -> None:
        self._models = models
        self._load = load
        self._shelves = shelves
        self._wishes = wishes
        self._complaints = complaints
        self._keep = keep  # newest good versions of a model that stay loaded
        self._on_refused = on_refused  # hears the model's name for every version that fails
        self._glimpses = Glimpses()
        self.is_ending = False  # then no more is loaded

    def load_first(self, name: str) -> str:
        """Load the version that answers; return why there is none, or nothing. Raises StartupError for a pin."""
        try:
            there = versions(self._models, name)
        except BundleError as error:
            return str(error)
        tries = self._wishes.tries(name, there)
        reasons = [self._bring_up(name, version) for version in tries if not self._shelves[name].ready()]
        self.choose(name)
        return "" if self._shelves[name].ready() else next(iter(reasons), f"{self._models / name}: no versions")

    def look_again(self) -> None:
        """Begin another look at the models."""
        self._glimpses.look_again()

    def look_at(self, name: str, *, waits_for_whole: bool, drain_s: float) -> None:
        """Bring one shelf in line with its folder; blocks while what left before is closed and new versions are proved.

        A folder that cannot be read, or is suddenly empty, leaves its model as it is.
        """
        folder = self._models / name
        try:
            there = versions(self._models, name)
        except BundleError as error:  # its folder alone
            self._complaints.tell(f"{error}; {name} stays as it is")
            return
        if not there and self._shelves[name].ready() and is_empty(folder):
            self._complaints.tell(f"{folder}: suddenly empty, {name} stays as it is; to let it go remove the folder")
            return
        self.release(drain_s)
        if self._shelves[name].ready() and not self._let_go(name, there):
            waits_for_whole = False  # all that answers has left
        self._load_wanted(name, there, waits_for_whole=waits_for_whole)

    def let_go(self, name: str) -> None:
        """Let go at once of versions whose folders have left, if one that is there can answer. Raises BundleError."""
        self._let_go(name, versions(self._models, name))

    def choose(self, name: str, *, among: Callable[[Shelf], Shelf] = lambda shelf: shelf) -> Shelf:
        """Choose what answers, of what is left of the shelf; return what the shelf was."""
        before = self._shelves.change(name, lambda shelf: among(shelf).with_choice(self._wishes.pin(name)))
        if self._shelves[name].answering != before.answering:
            log.info("answering version", model=name, version=self._shelves[name].answering, before=before.answering)
        return before

    def release(self, timeout_s: float) -> None:
        """Close what has left, when its requests are answered, for at most timeout_s seconds each; blocks."""
        if not self._shelves.left:
            return
        while self._shelves.left:
            self._shelves.left.pop().close(timeout_s)
        return_memory()

    def _load_wanted(self, name: str, there: list[int], *, waits_for_whole: bool) -> None:
        pin, shadow = self._wishes.pin(name), self._wishes.shadow(name)
        stays: set[int] = set()
        ready_count = 0
        for version in reversed(there):
            if ready_count < self._keep or version == pin or (shadow and version == shadow.version):
                self._bring_up(name, version, waits_for_whole=waits_for_whole)
                self.choose(name)  # at once: older ones, which are only kept, may take their time
                stays.add(version)
                ready_count += version in self._shelves[name].ready()
        self._keep_only(name, stays | {version for version in there if version == self._shelves[name].answering})
        may_come = pin is not None and self._folder(name, pin) in self._glimpses
        self._wishes.complain(name, there, answering=self._shelves[name].answering, may_come=may_come)

    def _bring_up(self, name: str, version: int, *, waits_for_whole: bool = False) -> str:
        """Load a version unless it is known as its folder stands; return why it does not serve, or nothing."""
        folder, known = self._folder(name, version), self._shelves[name].get(version)
        seen = fingerprint(folder)
        is_as_known = known is not None and known.fingerprint == seen and time.monotonic() < known.again_at
        if self.is_ending or is_as_known:
            return known.reason if known else "shutting down"
        if waits_for_whole and not self._glimpses.is_at_rest(folder, seen):
            return "its files have just changed"
        entry = Entry(name=name, version=version, state="LOADING", fingerprint=seen)
        if known is None or known.served is None:
            self._shelves.put(entry)
        log.info("loading", model=name, version=version)
        try:
            served = self._load(folder)
        except Exception as error:  # noqa: BLE001 -- whatever a folder holds, the other versions go on
            return self._refuse(entry, error)
        if self.is_ending or not fingerprint(folder):
            served.close(0.0)
            entries = self._shelves[name].entries
            self._keep_only(name, {other.version for other in entries if other.served or other.version != version})
            return "it left while it was loaded"
        self._shelves.put(replace(entry, state="READY", served=served))
        return ""

    def _refuse(self, entry: Entry, error: Exception) -> str:
        """Remember why a version that was to be loaded does not serve, tell it, and return it."""
        name, version = entry.name, entry.version
        unforeseen = f"{self._folder(name, version)}: {type(error).__name__}: {error}"
        reason = plain_line(str(error) if isinstance(error, CalotypeError) else unforeseen)
        known = self._shelves[name].get(version)
        still_serves = known is not None and known.served is not None  # as its folder was
        log.error("version refused", model=name, version=version, reason=reason, still_serves=still_serves)
        self._on_refused(name)
        refused = partial(
            Shelf.with_refusal,
            version=version,
            reason=public_reason(reason, models=self._models),
            fingerprint=entry.fingerprint,
            again_at=worth_a_try_at(error),
        )
        self._shelves.change(name, refused)
        return reason

    def _folder(self, name: str, version: int) -> Path:
        return self._models / name / str(version)

    def _let_go(self, name: str, there: list[int]) -> bool:
        """Do what `let_go` does; say whether one that is there can answer."""
        if not set(self._shelves[name].ready()) & set(there):
            return False
        self._keep_only(name, set(there))
        return True

    def _keep_only(self, name: str, stays: set[int]) -> None:
        gone = {entry.version for entry in self._shelves[name].entries} - stays
        before = self.choose(name, among=lambda shelf: shelf.without(gone))
        for entry in before.entries:
            if entry.version in gone:
                log.info("version leaves", model=name, version=entry.version, state=entry.state)
