"""One of several server processes, as `workers` starts it: in its place, on its cores, ended with its supervisor."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from serving.accord import Accord
from serving.errors import StartupError
from serving.logs import configure_logs
from serving.settings import ServerSettings

_BEAT_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)

log = structlog.get_logger(__name__)


def work(
    models: Path,
    settings: ServerSettings,
    *,
    place: int,
    cores: list[int],
    beat: ctypes.c_double,
    folder: Path,
    accord: Accord | None,
    supervisor: int,
) -> None:
    """Be one worker: in a session of its own, so that Ctrl-C reaches it once, and ended if its parent is killed."""
    from prometheus_client import values

    # Whoever comes after us in this place counts on in our files: else they would pile up with every death.
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: place)  # type: ignore[no-untyped-call]
    from serving import process

    def pulse() -> None:
        beat.value = time.monotonic()
        asyncio.get_running_loop().call_later(_BEAT_S, pulse)

    shared: Accord | None = None

    def share(own: Accord) -> None:
        nonlocal shared
        if own != shared:
            own.write(folder)
            shared = own

    os.setsid()
    signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))  # what came while we were imported ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it was killed before that
        raise SystemExit(1)
    with suppress(OSError):  # taken from us since: then on what is left
        os.sched_setaffinity(0, cores)
    name = multiprocessing.current_process().name
    configure_logs(log_format=settings.log_format, log_level=settings.log_level, worker=name)
    try:
        process.run(models, settings, on_serving=pulse, accord=accord, share=share)
    except StartupError as error:
        log.error("worker cannot start", reason=str(error))
        raise SystemExit(1) from None
