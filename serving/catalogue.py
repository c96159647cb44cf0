"""Which models are here, and in which state: the newest version of each that proves itself is served.

A version that fails is remembered with its reason, and the one before it is tried; a model of which none is left stops
the start. Knows no grpc.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from bundle.errors import BundleError, CalotypeError
from bundle.repository import model_names, versions
from serving.classifier import ServedModel
from serving.errors import NotReadyError, StartupError, UnknownModelError

State = Literal["LOADING", "READY", "DRAINING", "FAILED"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version of one model."""

    name: str
    version: int
    state: State
    reason: str = ""  # why it does not serve
    served: ServedModel | None = None  # where it is READY or DRAINING


class Catalogue:
    """Name → version → entry. Read from the event loop while `load_all` fills it from a thread."""

    def __init__(self, models: Path, load: Callable[[Path], ServedModel], *, default_model: str = "") -> None:
        self._models = models
        self._load = load
        self._default_model = default_model
        self._entries: dict[tuple[str, int], Entry] = {}
        self._is_loaded = False

    def load_all(self) -> None:
        """Load the newest good version of every model; blocks. Raises StartupError with one line."""
        try:
            names = model_names(self._models)
        except BundleError as error:
            raise StartupError(str(error)) from error
        if not names:
            raise StartupError(f"{self._models}: no models; write one with `trainer export RUN --to {self._models}`")
        if self._default_model and self._default_model not in names:
            raise StartupError(f"{self._models}: no model {self._default_model!r}, found {', '.join(names)}")
        for name in names:
            self._load_newest(name)
        self._is_loaded = True

    def find(self, model: str = "", version: str = "") -> ServedModel:
        """Return the served model; empty names mean the only or default model and its newest ready version.

        Raises UnknownModelError, or NotReadyError where it is there but cannot answer.
        """
        entry = self.entry(model, version)
        if entry.served is None or entry.state != "READY":
            raise NotReadyError(f"{entry.name}/{entry.version} is {entry.state}; try again later")
        return entry.served

    def entry(self, model: str = "", version: str = "") -> Entry:
        """Return the entry that a request names, whatever its state. Raises UnknownModelError, NotReadyError."""
        if not self._is_loaded:
            raise NotReadyError("models are loading; try again in a few seconds")
        name = model or self._default_name()
        candidates = [entry for entry in self.entries() if entry.name == name]
        if not candidates:
            raise UnknownModelError(f"no model {name[:64]!r}; `ListModels` names what is served")
        if not version:
            return next((entry for entry in reversed(candidates) if entry.state == "READY"), candidates[-1])
        for entry in candidates:
            if str(entry.version) == version:
                return entry
        there = ", ".join(str(entry.version) for entry in candidates)
        raise UnknownModelError(f"model {name!r} has no version {version[:16]!r}, found {there}")

    def entries(self) -> list[Entry]:
        """Return every known version, by name and version ascending."""
        return [entry for _, entry in sorted(self._entries.copy().items())]

    def start_draining(self) -> None:
        """Mark every served model as DRAINING: `find` refuses it from now on."""
        for entry in self.entries():
            if entry.state == "READY":
                self._put(entry.name, entry.version, "DRAINING", served=entry.served)

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued for at most timeout_s seconds a model; say whether all was done."""
        finished = [entry.served.close(timeout_s) for entry in self.entries() if entry.served is not None]
        return all(finished)

    def _load_newest(self, name: str) -> None:
        first_reason = ""
        for version in reversed(versions(self._models, name)):
            self._put(name, version, "LOADING")
            try:
                served = self._load(self._models / name / str(version))
            except CalotypeError as error:
                first_reason = first_reason or str(error)
                self._put(name, version, "FAILED", reason=str(error))
                log.error("version refused", model=name, version=version, reason=str(error))
                continue
            self._put(name, version, "READY", served=served)
            return
        raise StartupError(first_reason)

    def _put(
        self, name: str, version: int, state: State, *, reason: str = "", served: ServedModel | None = None
    ) -> None:
        self._entries[name, version] = Entry(name=name, version=version, state=state, reason=reason, served=served)

    def _default_name(self) -> str:
        names = sorted({entry.name for entry in self.entries()})
        if self._default_model or len(names) == 1:
            return self._default_model or names[0]
        raise UnknownModelError(f"several models are served, name one of {', '.join(names)}")
