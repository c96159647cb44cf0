"""Which models are here, in which state, and which version of each answers: the newest good one, or the pinned one.

`refresh` brings this in line with the folder while requests are answered: versions that appear are loaded and proved
before anyone can reach them, those that vanish leave, which `let_go` sees to while others are loaded. What that means
for a single model is in `upkeep`. Knows no grpc.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bundle.errors import BundleError
from bundle.repository import model_names, models_above
from serving.accord import Accord
from serving.classifier import ServedModel
from serving.complaints import Complaints
from serving.errors import InvalidRequestError, NotReadyError, SettingsError, StartupError, UnknownModelError
from serving.shelves import Entry, Shelf, Shelves
from serving.unnamed import Unnamed, some
from serving.upkeep import Upkeep
from serving.versions import Shadowing, VersionPolicy
from serving.watched import WatchedFiles
from serving.wishes import Wishes


class Catalogue:
    """Name → shelf. Read from the event loop at any time; what loads, looks at the folder or closes runs in threads."""

    def __init__(
        self,
        models: Path,
        load: Callable[[Path], ServedModel],
        *,
        default_model: str = "",
        accord: Accord | None = None,
        policy: VersionPolicy | None = None,
        on_refused: Callable[[str], None] = lambda _: None,
        trusted: Path | None = None,
    ) -> None:
        policy = policy or VersionPolicy()
        self._models = models
        self._unnamed = Unnamed(default=default_model, usual=accord.usual_model if accord else "")
        self._trusted = WatchedFiles([trusted] if trusted else [])  # a key by which versions are refused
        self._shelves = Shelves()
        self._refreshing = threading.Lock()
        self._complaints = Complaints()
        self._wishes = Wishes(
            policy, default_model=default_model, models=models, complaints=self._complaints, accord=accord
        )
        self._upkeep = Upkeep(
            models,
            load,
            shelves=self._shelves,
            wishes=self._wishes,
            complaints=self._complaints,
            keep=policy.keep,
            on_refused=on_refused,
        )
        self._is_loaded = False

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
        reasons = {name: reason for name in names if (reason := self._upkeep.load_first(name))}
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
                self._upkeep.choose(name)

    def let_go(self) -> None:
        """Let go of versions whose folders have left.

        As `follow_pins`, for while `refresh` loads, which may take long: a rollback does not wait for it.
        """
        with suppress(BundleError):  # likewise
            for name in set(model_names(self._models)) & set(self._shelves.names()):
                self._upkeep.let_go(name)

    def refresh(self, *, waits_for_whole: bool = False, drain_s: float = 30.0) -> None:
        """Bring the shelves in line with the folder and the pins; blocks while new versions are proved.

        What leaves is out of reach at once, and closed by `release`, or within drain_s before the next model is loaded:
        for all the new ones beside all the old there may be no memory. A folder that cannot be read, or is suddenly
        empty, of all models or of one, is taken for a lost mount: what serves goes on serving. With `waits_for_whole` a
        version is tried when two looks in a row found the same there: one that is copied file by file is no bad one.
        """
        with self._refreshing:
            self.follow_pins()  # whatever has become of the folder
            self._upkeep.look_again()
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
            names = sorted({*names, *self._shelves.names()})
            self._wishes.look_again(names)
            for name in names:
                self._upkeep.look_at(name, waits_for_whole=waits_for_whole, drain_s=drain_s)

    def release(self, timeout_s: float) -> None:
        """Close what has left, when its requests are answered, for at most timeout_s seconds each; blocks."""
        self._upkeep.release(timeout_s)

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
    def accord(self) -> Accord:
        """What a worker that comes back is to do as this one does."""
        answering = {entry.name: entry.version for entry in self._shelves.answering()}
        return Accord(usual_model=self._unnamed.usual, answering=answering, pins=self._wishes.pins)

    @property
    def can_answer(self) -> bool:
        """Whether there is any model that answers."""
        return bool(self._shelves.answering())

    def answers(self, entry: Entry) -> bool:
        """Say whether this version answers requests that name none."""
        return entry.state == "READY" and entry.version == self._shelves[entry.name].answering

    def shadowing(self, name: str) -> Shadowing | None:
        """Return which version is to shadow a model, and of how much of its traffic; None where none is."""
        return self._wishes.shadow(name)

    def candidate(self, name: str, version: int) -> ServedModel | None:
        """Return the ready version that may shadow the one that answers; NEWEST: the newest, if it is another."""
        return self._shelves[name].candidate(version)

    def entries(self) -> list[Entry]:
        """Return every known version, by name and version ascending."""
        return self._shelves.entries()

    def start_draining(self) -> None:
        """Mark every served model as DRAINING: `find` refuses it from now on, and `refresh` loads no more."""
        self._upkeep.is_ending = True
        for name in self._shelves.names():
            self._shelves.change(name, Shelf.draining)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued for at most timeout_s seconds; say whether all was done."""
        self._upkeep.is_ending = True
        until = time.monotonic() + timeout_s
        if not self._refreshing.acquire(timeout=timeout_s):  # a look at a folder that does not answer
            return False
        try:
            served = [*self._shelves.left, *(entry.served for entry in self.entries() if entry.served is not None)]
            finished = [model.close(max(0.0, until - time.monotonic())) for model in served]
        finally:
            self._refreshing.release()
        return all(finished)

    def _answering_names(self) -> list[str]:
        return [entry.name for entry in self._shelves.answering()]
