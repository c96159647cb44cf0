"""A server's process, from the command to the exit code: memory, signals, tracing, and the server between them.

SIGTERM, SIGINT or SIGHUP shuts the server down, exit 0. A second signal exits at once, but for SIGHUP: a terminal that
closes may send two.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import uvloop

from serving.accord import Accord
from serving.catalogue import Catalogue
from serving.classifier import ServedModel
from serving.endings import ending_signals
from serving.errors import StartupError
from serving.loading import load_model
from serving.memory import bound_heaps, freeze_heap, keep_returning_memory, return_memory
from serving.metrics import Metrics
from serving.occupancy import Occupancy
from serving.plan_search import Planner
from serving.server import Server
from serving.settings import ServerSettings
from serving.stages import Tracing
from serving.tls import keep_telling_validity, tls_files
from serving.versions import VersionPolicy

_TRACES_S: Final = 2.0

log = structlog.get_logger(__name__)


def run(
    models: Path,
    settings: ServerSettings,
    *,
    on_serving: Callable[[], None] = lambda: None,
    accord: Accord | None = None,
    share: Callable[[Accord], None] = lambda _: None,
) -> None:
    """Serve the folder `models` until a signal; blocks. Raises StartupError where nothing can be served.

    A worker that is started again gets the `accord` of the others, to do as they do; `share` hears of its own.
    """
    bound_heaps()
    freeze_heap()
    uvloop.run(_main(models, settings, on_serving=on_serving, accord=accord, share=share))


async def _main(
    models: Path,
    settings: ServerSettings,
    *,
    on_serving: Callable[[], None],
    accord: Accord | None,
    share: Callable[[Accord], None],
) -> None:
    started = time.monotonic()
    stop = _stop_on_signal(exits_at_second=settings.workers == 1)
    metrics, planner = Metrics(), Planner()
    catalogue = Catalogue(
        models,
        _loader(settings, metrics=metrics, planner=planner),
        default_model=settings.default_model,
        accord=accord,
        policy=_policy(settings, accord),
        on_refused=lambda name: metrics.load_failures.labels(name).inc(),
        trusted=settings.require_signature,
    )
    tracing = _start_tracing()
    server = Server(catalogue, settings, metrics=metrics, tracing=tracing, share=share)
    try:
        await _unless_stopped(server.startup(), stop)
    except BaseException:
        await server.abandon()
        raise
    return_memory()
    if not stop.is_set():
        planner.stop_measuring()
        await server.say_serving()
        seconds = round(time.monotonic() - started, 2)
        on_serving()  # first: who reads the line may rely on it
        log.info("SERVING", port=server.port, http_port=server.http_port, seconds=seconds, pid=os.getpid())
    keeping = [asyncio.create_task(keep_returning_memory())]
    if files := tls_files(settings):
        keeping.append(asyncio.create_task(keep_telling_validity(files)))
    await stop.wait()
    for task in keeping:
        task.cancel()
    log.info("draining")
    has_ended = await server.shutdown()
    if tracing:
        has_ended &= await _close(tracing)
    log.info("stopped")
    if not has_ended:  # the interpreter would wait for the thread
        os._exit(0)


def _policy(settings: ServerSettings, accord: Accord | None) -> VersionPolicy:
    """Return which versions are to be served. Who looks at the folder only once, and comes back, sees it as the others.

    They have what was there when they looked: their versions count as pinned.
    """
    policy = settings.policy()
    if settings.watch_s or not accord:
        return policy
    return replace(policy, pins={**accord.answering, **policy.pins})


def _loader(settings: ServerSettings, *, metrics: Metrics, planner: Planner) -> Callable[[Path], ServedModel]:
    """Return what makes a folder a model that answers, beside others of this process."""
    occupancy = Occupancy(decoders=settings.decoders, encoded_bytes=settings.encoded_bytes)
    return partial(load_model, settings=settings, metrics=metrics, planner=planner, occupancy=occupancy)


async def _unless_stopped(starting: Coroutine[None, None, None], stop: asyncio.Event) -> None:
    """Start; a signal that comes before that is done ends the process: nobody has been answered yet."""
    start, end = asyncio.ensure_future(starting), asyncio.ensure_future(stop.wait())
    await asyncio.wait({start, end}, return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        log.info("stopped before it served")
        os._exit(0)  # not even a folder that does not answer holds it up
    end.cancel()
    await start


async def _close(tracing: Tracing) -> bool:
    """Send what is left, for at most _TRACES_S seconds: a collector that is down would be tried for half a minute."""
    closing = threading.Thread(target=tracing.close, daemon=True)
    closing.start()
    await asyncio.to_thread(closing.join, _TRACES_S)
    return not closing.is_alive()


def _start_tracing() -> Tracing | None:
    """Return tracing where the environment names a collector for it."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or not _otel("EXPORTER_OTLP_TRACES_ENDPOINT", "EXPORTER_OTLP_ENDPOINT"):
        return None
    exporter = _otel("TRACES_EXPORTER") or "otlp"
    if exporter == "none":
        return None
    protocol = _otel("EXPORTER_OTLP_TRACES_PROTOCOL", "EXPORTER_OTLP_PROTOCOL") or "grpc"
    if (exporter, protocol) != ("otlp", "grpc"):
        raise StartupError(
            f"OTEL_*: found exporter {exporter!r} and protocol {protocol!r}, wanted otlp and grpc; name the "
            "collector's gRPC endpoint, usually port 4317, or set OTEL_TRACES_EXPORTER=none"
        )
    try:
        from serving import tracing
    except ImportError as error:
        raise StartupError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but not OpenTelemetry; install calotype[otel]"
        ) from error
    try:
        return tracing.start()
    except ValueError as error:  # the library's own words for a variable that it cannot read
        raise StartupError(f"OTEL_*: {error}; mend that variable, or set OTEL_SDK_DISABLED=true") from error


def _otel(*names: str) -> str:
    """Return the first of the variables OTEL_… that says something."""
    return next(filter(None, (os.environ.get(f"OTEL_{name}") for name in names)), "")


def _stop_on_signal(*, exits_at_second: bool) -> asyncio.Event:
    """Return what a signal sets.

    A worker may get the same one from the system and from its supervisor, which kills it where a second is meant.
    """
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set() and exits_at_second and number != signal.SIGHUP:
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in ending_signals():
        loop.add_signal_handler(number, on_signal, number)
    return stop
