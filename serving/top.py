"""A live view of a running server in the terminal, from its /metrics: rates, latencies, queue, batches, models."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from math import nan
from typing import Final, NoReturn

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from serving.channel import Access
from serving.errors import ClientError
from serving.readings import Reading, Span, read, since_start

_STAGES: Final = ("request", "queue", "decode", "preprocess", "inference")


def watch(
    address: str, access: Access, *, every_s: float, console: Console, pause: Callable[[float], None] = time.sleep
) -> None:
    """Show the server until Ctrl-C; where that is no screen, one view below the other.

    Raises ClientError where the server is not there at first; later gaps are told.
    """
    first = read(address, access)
    if not console.is_terminal or console.is_dumb_terminal:
        _follow(address, access, before=first, show=console.print, pause=partial(pause, every_s))
    with Live(console=console, auto_refresh=False, screen=True) as live:
        _follow(address, access, before=first, show=partial(live.update, refresh=True), pause=partial(pause, every_s))


def _follow(
    address: str,
    access: Access,
    *,
    before: Reading,
    show: Callable[[RenderableType], None],
    pause: Callable[[], None],
) -> NoReturn:
    show(frame(address, since_start(before)))
    while True:
        pause()
        try:
            after = read(address, access)
        except ClientError as error:
            show(Text(str(error)))
            continue
        show(frame(address, Span(before, after)))
        before = after


def frame(address: str, span: Span) -> RenderableType:
    """Draw one view of a span."""
    now = span.after
    head = (
        f"[bold]{escape(address)}[/bold]  Calotype {', '.join(now.values('calotype_build_info', 'version'))}"
        f"  up {_duration(now.at_s - now.total('process_start_time_seconds'))}"
        f"  CPU {100 * span.rate('process_cpu_seconds_total'):.0f} %"
        f"  memory {now.total('process_resident_memory_bytes') / 2**20:.0f} MB"
        f"  descriptors {now.total('process_open_fds'):.0f}"
    )
    parts = [_requests(span), _refusals(span), _stages(span), _batches(span)]  # trouble first, where room is short
    return Group(head, _models(span), Columns(parts, padding=(0, 2)))


def _models(span: Span) -> Table:
    table = _table("models", "model", "version", "answers", "variant", "provider", "pictures/s", "waiting", "mean ms")
    for info in _serving(span.after):
        of = {"model": info["model"], "version": info["version"]}
        answered = span.growth("calotype_answered_total", **of)
        seconds = span.growth("calotype_answered_seconds_total", **of)
        table.add_row(
            *of.values(),
            "yes" if span.after.total("calotype_answering", **of) else "",
            info["variant"],
            info["provider"],
            f"{span.rate('calotype_pictures_total', **of):.1f}",
            f"{span.after.total('calotype_queue_pictures', **of):.0f}",
            _ms(seconds / answered if answered else nan),
        )
    return table


def _requests(span: Span) -> Table:
    rows = (
        (door, status, f"{span.rate('calotype_requests_total', door=door, status=status):.1f}")
        for door in span.after.values("calotype_requests_total", "door")
        for status in span.after.values("calotype_requests_total", "status")
        if span.growth("calotype_requests_total", door=door, status=status)
    )
    return _filled(_table("requests", "door", "status", "per s"), rows)


def _stages(span: Span) -> Table:
    rows = (
        (stage, *(_ms(span.quantile(f"calotype_{stage}_seconds", share)) for share in (0.5, 0.99))) for stage in _STAGES
    )
    return _filled(_table("stages", "stage", "p50 ms", "p99 ms"), rows)


def _batches(span: Span) -> Table:
    rows = (
        (closing, f"{span.rate('calotype_batch_size_count', closing=closing):.1f}", f"{size:.2f}")
        for closing in span.after.values("calotype_batch_size_count", "closing")
        if (size := span.mean("calotype_batch_size", closing=closing)) == size
    )
    return _filled(_table("batches", "closed", "per s", "pictures"), rows)


def _refusals(span: Span) -> Table:
    refused = (
        (f"pictures refused: {reason}", span.rate("calotype_rejected_total", reason=reason))
        for reason in span.after.values("calotype_rejected_total", "reason")
    )
    failed = (
        (f"pictures failed: {outcome}", span.rate("calotype_pictures_total", outcome=outcome))
        for outcome in span.after.values("calotype_pictures_total", "outcome")
        if outcome != "OK"
    )
    turned_away = (
        (f"requests turned away: {reason}", span.rate("calotype_turned_away_total", reason=reason))
        for reason in span.after.values("calotype_turned_away_total", "reason")
    )
    rows = ((text, f"{rate:.2f}") for text, rate in (*refused, *failed, *turned_away) if rate)
    return _filled(_table("not answered", "what", "per s"), rows)


def _serving(reading: Reading) -> list[dict[str, str]]:
    """Return the labels of the versions that serve, sorted; of one that is gone a worker's file still tells 0."""
    found = [dict(given) for (name, given), value in reading.samples.items() if name == "calotype_model_info" and value]
    return sorted(found, key=lambda info: (info["model"], int(info["version"])))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        is_figure = column.endswith(("ms", "per s", "/s", "waiting")) or (title, column) == ("batches", "pictures")
        table.add_column(column, justify="right" if is_figure else "left", overflow="fold")
    return table


def _filled(table: Table, rows: Iterable[tuple[str, ...]]) -> Table:
    for row in rows:
        table.add_row(*row)
    if not table.row_count:
        table.add_row(*("-" for _ in table.columns))
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds == seconds else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
