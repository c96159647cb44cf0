"""What is known of each model: its versions with their states, and the one that answers. Values that never change.

A whole shelf is replaced at once, so that whoever reads one sees a swap either before or after, never between.
"""

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from serving.classifier import ServedModel
from serving.errors import UnknownModelError
from serving.versions import NEWEST

State = Literal["LOADING", "READY", "DRAINING", "FAILED"]
Fingerprint = tuple[tuple[str | int, ...], ...]  # file, inode, bytes, times of change in ns, who may read it
_MAX_FILES: Final = 1000  # of a model folder that a fingerprint looks at


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One version of one model."""

    name: str
    version: int
    state: State
    reason: str = ""  # why it does not serve, or why what its folder holds by now is refused
    served: ServedModel | None = None  # where it is READY or DRAINING
    fingerprint: Fingerprint = ()  # of the folder that this state comes from
    again_at: float = math.inf  # time.monotonic from which it is tried again, though its folder is the same


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The versions of one model, ascending, and the one that answers requests which name none."""

    entries: tuple[Entry, ...] = ()
    answering: int | None = None

    def get(self, version: int | None) -> Entry | None:
        """Return a version's entry."""
        return next((entry for entry in self.entries if entry.version == version), None)

    def named(self, version: str) -> Entry:
        """Return the entry of a version that a request names, or what answers where it names none.

        Raises UnknownModelError. The shelf must not be empty.
        """
        if not version:
            return self.get(self.answering) or self.entries[-1]
        for entry in self.entries:
            if str(entry.version) == version:
                return entry
        there = ", ".join(str(entry.version) for entry in self.entries)
        raise UnknownModelError(f"model {self.entries[0].name!r} has no version {version[:16]!r}, found {there}")

    def candidate(self, version: int) -> ServedModel | None:
        """Return the ready version that may shadow the one that answers; NEWEST: the newest, if it is another."""
        number = max(self.ready(), default=None) if version == NEWEST else version
        entry = self.get(number)
        return entry.served if entry and entry.state == "READY" and number != self.answering else None

    def ready(self) -> list[int]:
        """Return the versions that can answer, ascending."""
        return [entry.version for entry in self.entries if entry.state == "READY"]

    def with_entry(self, new: Entry) -> "Shelf":
        """Return a shelf with this entry in its version's place."""
        others = [entry for entry in self.entries if entry.version != new.version]
        return replace(self, entries=tuple(sorted([*others, new], key=lambda entry: entry.version)))

    def with_refusal(self, *, version: int, reason: str, fingerprint: Fingerprint, again_at: float) -> "Shelf":
        """Return a shelf that tells why what this version's folder holds by now does not serve.

        What serves goes on serving; what has left meanwhile does not come back.
        """
        known = self.get(version)
        if known is None:
            return self
        state: State = known.state if known.served else "FAILED"
        refused = replace(known, state=state, reason=reason, fingerprint=fingerprint, again_at=again_at)
        return self.with_entry(refused)

    def without_refusals(self) -> "Shelf":
        """Return a shelf whose refused versions are known no more by their files."""
        entries = (replace(entry, fingerprint=()) if entry.reason else entry for entry in self.entries)
        return replace(self, entries=tuple(entries))

    def without(self, versions: set[int]) -> "Shelf":
        """Return a shelf without these versions."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.version not in versions))

    def draining(self) -> "Shelf":
        """Return a shelf whose ready versions answer no more."""
        entries = (replace(entry, state="DRAINING") if entry.state == "READY" else entry for entry in self.entries)
        return replace(self, entries=tuple(entries))

    def with_choice(self, pin: int | None) -> "Shelf":
        """Return a shelf on which the pinned version answers, or the newest ready one.

        A pinned version that cannot answer leaves the choice as it was, where that one still can.
        """
        ready = self.ready()
        if pin in ready:
            return replace(self, answering=pin)
        if pin is not None and self.answering in ready:
            return self
        return replace(self, answering=ready[-1] if ready else None)


class Shelves:
    """Those of all models, by name. Read from any thread at any time; a shelf without versions is not kept."""

    def __init__(self) -> None:
        self._by_name: dict[str, Shelf] = {}  # replaced, never changed
        self._changing = threading.Lock()
        self.left: list[ServedModel] = []  # what is on no shelf any more, each once: to be closed by who takes it out

    def __getitem__(self, name: str) -> Shelf:
        """Return a model's shelf; an empty one where it is not known."""
        return self._by_name.get(name, Shelf())

    def names(self) -> list[str]:
        """Return the models that have a version, sorted."""
        return sorted(self._by_name)

    def entries(self) -> list[Entry]:
        """Return every known version, by name and version ascending."""
        return [entry for _, shelf in sorted(self._by_name.items()) for entry in shelf.entries]

    def answering(self) -> list[Entry]:
        """Return the version of each model that answers, where one does."""
        return [entry for shelf in self._by_name.values() if (entry := shelf.get(shelf.answering))]

    def put(self, entry: Entry) -> None:
        """Put a version in its place."""
        self.change(entry.name, lambda shelf: shelf.with_entry(entry))

    def forget_refusals(self) -> None:
        """Let every version that was refused be another one, to be tried again."""
        for name in self.names():
            self.change(name, Shelf.without_refusals)

    def change(self, name: str, change: Callable[[Shelf], Shelf]) -> Shelf:
        """Replace a shelf: one assignment, which readers see whole. Return what it was."""
        with self._changing:
            before, after = self[name], change(self[name])
            by_name = {**self._by_name, name: after}
            self._by_name = {key: shelf for key, shelf in by_name.items() if shelf.entries}
            stay = [entry.served for entry in after.entries]
            self.left += [entry.served for entry in before.entries if entry.served and entry.served not in stay]
        return before


def fingerprint(folder: Path) -> Fingerprint:
    """Return what changes whenever a file below a folder does; files that vanish meanwhile are left out."""
    found = []
    for place, _, files in os.walk(folder):
        for file in sorted(files):
            path = Path(place) / file
            try:
                stat = path.stat()
            except OSError:
                continue
            may_read = stat.st_mode, stat.st_uid, stat.st_gid
            changed = stat.st_mtime_ns, stat.st_ctime_ns  # a copy may bring its old times with it
            found.append((str(path.relative_to(folder)), stat.st_ino, stat.st_size, *changed, *may_read))
            if len(found) == _MAX_FILES:
                return tuple(found)
    return tuple(sorted(found))
