"""What an operator has to mend in a folder that is looked at again and again: each is logged once while it lasts."""

import structlog

log = structlog.get_logger(__name__)


class Complaints:
    """Remembers those of the last look, and of this one."""

    def __init__(self) -> None:
        self._before: set[str] = set()
        self._now: set[str] = set()

    def look_again(self) -> None:
        """Begin a new look: what is not told again in it has been mended, and would be logged anew."""
        self._before, self._now = self._now, set()

    def tell(self, text: str) -> None:
        """Log a complaint, unless the last look or this one had it already."""
        if text not in self._before | self._now:
            log.error(text)
        self._now.add(text)
