"""What a person sees while training: a live bar in a terminal, plain lines elsewhere. Always on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Bar:
    """One epoch's bar; counts pictures and shows their rate."""

    def __init__(self, live: RichProgress, *, title: str, total: int, done: int) -> None:
        self._live = live
        self._task = live.add_task(title, total=total, completed=done, rate=0.0, loss=float("nan"))
        self._pictures = 0

    def advance(self, *, pictures: int, loss: float) -> None:
        """Count one step."""
        self._pictures += pictures
        elapsed = self._live.tasks[0].elapsed or 1e-9
        self._live.update(self._task, advance=1, rate=self._pictures / elapsed, loss=loss)


class Progress:
    """Where a fit reports to."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    @contextmanager
    def epoch(self, number: int, *, total: int, done: int) -> Iterator[Bar]:
        """Show a bar of `total` steps while the block runs; nothing where there is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} pictures/s  loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        live = RichProgress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        with live:
            yield Bar(live, title=f"epoch {number + 1}", total=total, done=done)

    def epoch_done(self, number: int, *, loss: float, accuracy: float) -> None:
        """Print an epoch's figures."""
        self.say(f"epoch {number + 1}: loss {loss:.4f}, validation accuracy {accuracy:.4f}")
