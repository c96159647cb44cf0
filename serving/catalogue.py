"""Which models are here, in which state, and which version of each answers: the newest good one, or the pinned one.

`refresh` brings this in line with the folder while requests are answered: versions that appear are loaded and proved
before anyone can reach them, those that vanish leave, which `let_go` sees to while others are loaded. A version that
fails is remembered with its reason and never serves; it is tried again when its folder changes, or after a minute where
the machine was short of something. Knows no grpc.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from bundle.errors import BundleError, CalotypeError
from bundle.repository import is_empty, model_names, models_above, versions
from serving.classifier import ServedModel
from serving.complaints import Complaints
from serving.errors import InvalidRequestError, NotReadyError, SettingsError, StartupError, UnknownModelError
from serving.glimpses import Glimpses
from serving.memory import return_memory
from serving.reasons import plain_line, public_reason, worth_a_try_at
from serving.shelves import Entry, Shelf, Shelves, fingerprint
from serving.unnamed import Unnamed, some
from serving.versions import VersionPolicy
from serving.watched import WatchedFiles
from serving.wishes import Wishes

log = structlog.get_logger(__name__)


class Catalogue:
    """Name → shelf. Read from the event loop at any time; what loads, looks at the folder or closes runs in threads."""

    def __init__(
        self,
        models: Path,
        load: Callable[[Path], ServedModel],
        *,
        default_model: str = "",
        usual_model: str = "",
        is_restart: bool = False,
        policy: VersionPolicy | None = None,
        on_refused: Callable[[str], None] = lambda _: None,
        trusted: Path | None = None,
    ) -> None:
        self._models = models
        self._load = load
        self._unnamed = Unnamed(default=default_model, usual=usual_model)
        self._policy = policy or VersionPolicy()
        self._trusted = WatchedFiles([trusted] if trusted else [])  # a key by which versions are refused
        self._on_refused = on_refused  # hears the model's name for every version that fails
        self._shelves = Shelves()
        self._refreshing = threading.Lock()
        self._glimpses = Glimpses()
        self._complaints = Complaints()
        self._wishes = Wishes(
            self._policy,
            default_model=default_model,
            models=models,
            complaints=self._complaints,
            is_restart=is_restart,
        )
        self._is_loaded = False
        self._is_closing = False

    def load_all(self) -> None:
        """Load what answers of every model, the rest is for `refresh`; blocks.

        Raises StartupError with one line where nothing can answer, or not the default or a pinned model.
        """
        self._trusted.have_changed()
        try:
            names = model_names(self._models)
        except BundleError as error:
            raise StartupError(str(error)) from error
        if not names:
            if meant := models_above(self._models):
                raise StartupError(f"{self._models}: no models, but versions of one; serve {meant}")
            advice = f"write one with `trainer export RUN --name NAME --to {self._models}`"
            raise StartupError(f"{self._models}: no models; {advice}")
        self._wishes.begin(names)
        reasons = {name: reason for name in names if (reason := self._load_first(name))}
        missed = self._wishes.missed(reasons)
        if missed or len(reasons) == len(names):  # else the others serve, as when one fails later
            raise StartupError(reasons[[*missed, names[0]][0]])
        self._unnamed.begin_with(self._answering_names())
        self._is_loaded = True

    def follow_pins(self) -> None:
        """Let what is pinned by now answer, where it is loaded; needs no look at the folder, which may not answer."""
        with suppress(SettingsError):  # `refresh` complains
            self._wishes.read_pins()
            for name in self._shelves.names():
                self._choose(name)

    def let_go(self) -> None:
        """Let go of versions whose folders have left.

        As `follow_pins`, for while `refresh` loads, which may take long: a rollback does not wait for it.
        """
        with suppress(BundleError):  # likewise
            for name in set(model_names(self._models)) & set(self._shelves.names()):
                self._let_go(name, versions(self._models, name))

    def refresh(self, *, waits_for_whole: bool = False, drain_s: float = 30.0) -> None:
        """Bring the shelves in line with the folder and the pins; blocks while new versions are proved.

        What leaves is out of reach at once, and closed by `release`, or within drain_s before the next model is loaded:
        for all the new ones beside all the old there may be no memory. A folder that cannot be read, or is suddenly
        empty, of all models or of one, is taken for a lost mount: what serves goes on serving. With `waits_for_whole` a
        version is tried when two looks in a row found the same there: one that is copied file by file is no bad one.
        """
        with self._refreshing:
            self._glimpses.look_again()
            self._complaints.look_again()
            if self._trusted.have_changed():
                self._shelves.forget_refusals()
            try:
                names = model_names(self._models)
            except BundleError as error:
                self._complaints.tell(f"{self._models}: cannot be looked at, all stays as it is: {error}")
                return
            if not names:
                self._complaints.tell(f"{self._models}: no models any more, all stays as it is")
                return
            self._wishes.look_again(names)
            for name in sorted({*names, *self._shelves.names()}):
                self._look_at(name, waits_for_whole=waits_for_whole, drain_s=drain_s)

    def release(self, timeout_s: float) -> None:
        """Close what has left, when its requests are answered, for at most timeout_s seconds each; blocks."""
        if not self._shelves.left:
            return
        while self._shelves.left:
            self._shelves.left.pop().close(timeout_s)
        return_memory()

    def find(self, model: str = "", version: str = "") -> ServedModel:
        """Return the served model; empty names mean the only or default model and the version that answers.

        Raises InvalidRequestError, UnknownModelError, or NotReadyError where it is there but cannot answer.
        """
        entry = self.entry(model, version)
        if entry.served is None or entry.state != "READY":
            advice = "the list of models says why" if entry.state == "FAILED" else "try again later"
            raise NotReadyError(f"{entry.name}/{entry.version} is {entry.state}; {advice}")
        return entry.served

    def entry(self, model: str = "", version: str = "") -> Entry:
        """Return the entry that a request names, whatever its state.

        Raises InvalidRequestError, UnknownModelError, NotReadyError.
        """
        if version and not (version.isascii() and version.isdigit() and version[0] != "0"):
            raise InvalidRequestError(f"version: found {version[:32]!r}, wanted a positive integer, or nothing")
        if not self._is_loaded:
            raise NotReadyError("models are loading; try again in a few seconds")
        name = model or self._unnamed.choose(self._shelves.names(), answering=self._answering_names())
        shelf = self._shelves[name]
        if not shelf.entries:
            raise UnknownModelError(f"no model {name[:64]!r}, found {some(self._shelves.names())}")
        return shelf.named(version)

    def only(self) -> ServedModel | None:
        """Return what answers where a single model is served, else nothing."""
        answering = self._shelves.answering()
        return answering[0].served if len(answering) == 1 else None

    @property
    def usual_model(self) -> str:
        """Which model goes on answering requests without a name when others appear; empty: there was none alone."""
        return self._unnamed.usual

    @property
    def can_answer(self) -> bool:
        """Whether there is any model that answers."""
        return bool(self._shelves.answering())

    def answers(self, entry: Entry) -> bool:
        """Say whether this version answers requests that name none."""
        return entry.state == "READY" and entry.version == self._shelves[entry.name].answering

    def candidate(self, name: str, version: int) -> ServedModel | None:
        """Return the ready version that may shadow the one that answers; NEWEST: the newest, if it is another."""
        return self._shelves[name].candidate(version)

    def entries(self) -> list[Entry]:
        """Return every known version, by name and version ascending."""
        return self._shelves.entries()

    def start_draining(self) -> None:
        """Mark every served model as DRAINING: `find` refuses it from now on, and `refresh` loads no more."""
        self._is_closing = True
        for name in self._shelves.names():
            self._shelves.change(name, Shelf.draining)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued for at most timeout_s seconds; say whether all was done."""
        self._is_closing = True
        until = time.monotonic() + timeout_s
        if not self._refreshing.acquire(timeout=timeout_s):  # a look at a folder that does not answer
            return False
        try:
            served = [*self._shelves.left, *(entry.served for entry in self.entries() if entry.served is not None)]
            finished = [model.close(max(0.0, until - time.monotonic())) for model in served]
        finally:
            self._refreshing.release()
        return all(finished)

    def _load_first(self, name: str) -> str:
        """Load the version that answers; return why there is none, or nothing. Raises StartupError for a pin."""
        try:
            there = versions(self._models, name)
        except BundleError as error:
            return str(error)
        tries = self._wishes.tries(name, there)
        reasons = [self._bring_up(name, version) for version in tries if not self._shelves[name].ready()]
        self._choose(name)
        return "" if self._shelves[name].ready() else next(iter(reasons), f"{self._models / name}: no versions")

    def _look_at(self, name: str, *, waits_for_whole: bool, drain_s: float) -> None:
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
        self._refresh_model(name, there, waits_for_whole=waits_for_whole)

    def _refresh_model(self, name: str, there: list[int], *, waits_for_whole: bool) -> None:
        pin, shadow = self._wishes.pin(name), self._wishes.shadow(name)
        if self._shelves[name].ready() and not self._let_go(name, there):
            waits_for_whole = False  # all that answers has left
        stays: set[int] = set()
        ready_count = 0
        for version in reversed(there):
            if ready_count < self._policy.keep or version == pin or (shadow and version == shadow.version):
                self._bring_up(name, version, waits_for_whole=waits_for_whole)
                self._choose(name)  # at once: older ones, which are only kept, may take their time
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
        if self._is_closing or is_as_known:
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
            reason = str(error) if isinstance(error, CalotypeError) else f"{folder}: {type(error).__name__}: {error}"
            reason = plain_line(reason)
            still_serves = known is not None and known.served is not None  # as its folder was
            log.error("version refused", model=name, version=version, reason=reason, still_serves=still_serves)
            self._on_refused(name)
            public = public_reason(reason, models=self._models)
            again_at = worth_a_try_at(error)
            refused = partial(Shelf.with_refusal, version=version, reason=public, fingerprint=seen, again_at=again_at)
            self._shelves.change(name, refused)
            return reason
        if self._is_closing or not fingerprint(folder):
            served.close(0.0)
            others = {
                other.version for other in self._shelves[name].entries if other.served or other.version != version
            }
            self._keep_only(name, others)
            return "it left while it was loaded"
        self._shelves.put(replace(entry, state="READY", served=served))
        return ""

    def _answering_names(self) -> list[str]:
        return [entry.name for entry in self._shelves.answering()]

    def _folder(self, name: str, version: int) -> Path:
        return self._models / name / str(version)

    def _let_go(self, name: str, there: list[int]) -> bool:
        """Let go at once of versions whose folders have left, if one that is there can answer; say whether one can."""
        if not set(self._shelves[name].ready()) & set(there):
            return False
        self._keep_only(name, set(there))
        return True

    def _keep_only(self, name: str, stays: set[int]) -> None:
        gone = {entry.version for entry in self._shelves[name].entries} - stays
        before = self._choose(name, among=lambda shelf: shelf.without(gone))
        for entry in before.entries:
            if entry.version in gone:
                log.info("version leaves", model=name, version=entry.version, state=entry.state)

    def _choose(self, name: str, *, among: Callable[[Shelf], Shelf] = lambda shelf: shelf) -> Shelf:
        """Choose what answers, of what is left of the shelf; return what the shelf was."""
        before = self._shelves.change(name, lambda shelf: among(shelf).with_choice(self._wishes.pin(name)))
        if self._shelves[name].answering != before.answering:
            log.info("answering version", model=name, version=self._shelves[name].answering, before=before.answering)
        return before
