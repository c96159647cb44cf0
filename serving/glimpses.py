"""Has a folder come to rest? One that is copied file by file is whole when two looks in a row found the same there."""

from pathlib import Path

from serving.shelves import Fingerprint


class Glimpses:
    """Remembers what the last look and this one found of folders that may still be on their way here."""

    def __init__(self) -> None:
        self._before: dict[Path, Fingerprint] = {}
        self._now: dict[Path, Fingerprint] = {}

    def look_again(self) -> None:
        """Begin a new look."""
        self._before, self._now = self._now, {}

    def is_at_rest(self, folder: Path, seen: Fingerprint) -> bool:
        """Say whether the last look found the same there; where not, remember this one."""
        if self._before.get(folder) == seen:
            return True
        self._now[folder] = seen
        return False

    def __contains__(self, folder: Path) -> bool:
        """Say whether a folder was found on its way in this look."""
        return folder in self._now
