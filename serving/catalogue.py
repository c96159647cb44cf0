"""The models being served, by name and version. Of each model the newest version that proves itself is served; a newer
one that does not is remembered with its reason. Knows nothing of gRPC.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from bundle.errors import CalotypeError
from bundle.repository import model_names, versions
from serving.classifier import ServedModel
from serving.errors import NotReadyError, StartupError, UnknownModelError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version that was looked at."""

    name: str
    version: int
    state: Literal["READY", "DRAINING", "FAILED"]
    reason: str = ""  # why it failed
    served: ServedModel | None = None


class Catalogue:
    """Filled once by `load_all`; empty until then."""

    def __init__(self, models: Path, load: Callable[[Path], ServedModel], *, default_model: str = "") -> None:
        self._models, self._load, self._default_model = models, load, default_model
        self._entries: list[Entry] = []
        self._is_loaded = False
        self._is_draining = False

    def load_all(self) -> None:
        """Load every model; raises StartupError where one of them has no version that may serve, BundleError."""
        names = model_names(self._models)
        if not names:
            raise StartupError(f"{self._models}: found no model, wanted <name>/<version>/ in it; run `trainer export`")
        if self._default_model and self._default_model not in names:
            raise StartupError(f"--default-model {self._default_model!r}: found only {', '.join(names)}")
        for name in names:
            self._load_newest(name)
        self._is_loaded = True

    def entries(self) -> list[Entry]:
        """Return every version that was looked at, failed ones too."""
        return list(self._entries)

    def entry(self, name: str, version: str) -> Entry:
        """Return one version; empty arguments as in `find`. Raises UnknownModelError, NotReadyError while loading."""
        wanted = self._resolve(name)
        known = [entry for entry in self._entries if entry.name == wanted]
        for entry in known:
            if str(entry.version) == version or (not version and entry.served is not None):
                return entry
        served = ", ".join(str(entry.version) for entry in known)
        raise UnknownModelError(f"{wanted}: version {version[:16]!r} is not known, wanted one of {served}")

    def find(self, name: str, version: str) -> ServedModel:
        """Return a model that serves: an empty name is the only or default one, an empty version the newest ready.

        Raises NotReadyError while loading or draining and for a failed version, UnknownModelError for any other.
        """
        if self._is_draining:
            raise NotReadyError("the server is draining; call again, another one may answer")
        entry = self.entry(name, version)
        if entry.served is None:
            raise NotReadyError(f"{entry.name}: version {entry.version} was refused at load; use another version")
        return entry.served

    def start_draining(self) -> None:
        """Refuse what is asked for from now on."""
        self._is_draining = True

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued everywhere; say whether that was in time."""
        closed = [entry.served.close(timeout_s) for entry in self._entries if entry.served is not None]
        return all(closed)

    def _resolve(self, name: str) -> str:
        if not self._is_loaded:
            raise NotReadyError("the models are still loading; call again")
        names = sorted({entry.name for entry in self._entries})
        wanted = name or self._default_model or (names[0] if len(names) == 1 else "")
        if wanted not in names:
            found = f"model {wanted[:64]!r} is not served" if wanted else "no model is named"
            raise UnknownModelError(f"{found}, wanted one of {', '.join(names)}")
        return wanted

    def _load_newest(self, name: str) -> None:
        for version in reversed(versions(self._models, name)):
            try:
                served = self._load(self._models / name / str(version))
            except CalotypeError as error:
                log.error("version refused", model=name, version=version, reason=str(error))
                self._entries.append(Entry(name=name, version=version, state="FAILED", reason=str(error)))
                continue
            log.info("model ready", model=name, version=version, provider=served.provider)
            self._entries.append(Entry(name=name, version=version, state="READY", served=served))
            return
        raise StartupError(f"no version of {name!r} may serve; the newest: {self._reason(name)}")

    def _reason(self, name: str) -> str:
        return next(entry.reason for entry in self._entries if entry.name == name)
