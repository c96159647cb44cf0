"""What the workers of one server tell whoever of them comes back: what answers, and by which pins.

A file in the folder that they share, replaced as a whole: whoever reads it sees one worker's word or another's.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

_FILE: Final = "accord.json"


@dataclass(frozen=True, kw_only=True)
class Accord:
    """What one worker does. Empty: nobody serves by now."""

    usual_model: str = ""  # which goes on answering requests without a name when others appear
    answering: Mapping[str, int] = field(default_factory=dict)  # model name to the version that answers
    pins: Mapping[str, int] = field(default_factory=dict)  # the last that could be read

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what was written last; an empty one where nothing was."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads((folder / _FILE).read_bytes()))
        return cls()

    def write(self, folder: Path) -> None:
        """Put it in place of what was written before, where there is room. The first usual model stays."""
        usual_model = Accord.read(folder).usual_model or self.usual_model
        text = json.dumps({**asdict(self), "usual_model": usual_model})
        own = folder / f"{_FILE}.{os.getpid()}"
        with suppress(OSError):
            own.write_text(text, encoding="utf-8")
            own.replace(folder / _FILE)
