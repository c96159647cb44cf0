"""Several server processes behind one address: started, watched, started again when one dies, stopped together.

For more cores than one Python process can feed. The system shares out connections among the processes (SO_REUSEPORT);
each takes its share of the cores, loads every model for itself, and answers health for itself. Calls of a process that
dies fail as UNAVAILABLE, the others' do not; who comes back in its place answers as they do, or is tried again later.
Metrics are kept in files of a folder that all share, so that any of them tells the sums.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

import structlog

from serving.accord import Accord
from serving.addresses import Address
from serving.endings import ending_signals
from serving.errors import StartupError
from serving.settings import ServerSettings
from serving.shared_places import held_port, metrics_folder
from serving.worker import work

MAX_PAUSE_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.5
_STEADY_S: Final = 10.0  # a process that served, and lived so long, is started again at once
_KILL_AFTER_S: Final = 10.0  # beyond the drain
_LOOK_S: Final = 5.0  # at whether the workers' loops still run
_LOOKS: Final = 6  # in a row without a sign of it: wedged
_NO_ROOM: Final = -signal.SIGBUS  # what the system does where a mapped file cannot be written to disk

log = structlog.get_logger(__name__)


def pause_s(failures: int) -> float:
    """Return how long to wait before a process is started again that died early so often in a row; once is no wait."""
    return min(MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10)) if failures > 1 else 0.0


def run(models: Path, settings: ServerSettings) -> None:
    """Serve with settings.workers processes until a signal; blocks. Raises StartupError where none can serve."""
    with ExitStack() as stack:
        folder = stack.enter_context(metrics_folder())
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when the library is imported: in the workers
        address = Address.parse(settings.address)
        shared = replace(settings, address=stack.enter_context(held_port(address)))
        if settings.http_address != "off":
            http = address.beside(settings.http_address)
            shared = replace(shared, http_address=stack.enter_context(held_port(http)))
        _Supervisor(models, shared, Path(folder)).run()


@dataclass(kw_only=True)
class _Worker:
    """One place among the workers, and the process that holds it now."""

    process: SpawnProcess
    # When its loop last ran; 0 before it serves. Without a lock, which who is killed in the midst would keep for ever.
    beat: ctypes.c_double
    started: float
    failures: int = 0
    looked: float = 0.0  # when its beat was last looked at
    last_beat: float = 0.0
    missed: int = 0  # looks in a row that found it unchanged
    due: float | None = None  # when a dead one is to be started again


class _Supervisor:
    def __init__(self, models: Path, settings: ServerSettings, folder: Path) -> None:
        self._models = models
        self._folder = folder  # that the workers share
        self._settings = settings
        self._has_served = False
        self._context = multiprocessing.get_context("spawn")  # fork would copy threads' locks as they stand
        self._workers: list[_Worker] = []
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._stop_writer.setblocking(False)

    def run(self) -> None:
        signal.set_wakeup_fd(self._stop_writer.fileno())
        for number in ending_signals():
            signal.signal(number, lambda *_: None)  # the wake-up tells
        try:
            for place in range(self._settings.workers):
                if wait([self._stop_reader], 0):
                    return
                self._workers.append(self._start_first(place))
            self._watch()
        finally:
            self._stop_all()

    def _start_first(self, place: int) -> _Worker:
        try:
            return self._start(place)
        except OSError as error:
            raise StartupError(
                f"worker {place} cannot be started: {error.strerror}; choose fewer --workers, or one"
            ) from error

    def _start(self, place: int, *, failures: int = 0) -> _Worker:
        usable = sorted(os.sched_getaffinity(0))  # anew: a cpuset may have changed
        cores = usable[place :: self._settings.workers] or usable
        beat = self._context.RawValue(ctypes.c_double)
        started = self._context.Process(
            target=work,
            args=(self._models, self._settings),
            kwargs={
                "place": place,
                "cores": cores,
                "beat": beat,
                "folder": self._folder,
                "accord": self._accord(),
                "supervisor": os.getpid(),
            },
            name=f"worker-{place}",
        )
        resource_tracker.ensure_running()  # else it is begun by `start`, which lets SIGINT through after that
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for us: see `worker`
        try:
            started.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        log.info("worker started", worker=started.name, pid=started.pid, cores=cores)
        return _Worker(process=started, beat=beat, started=time.monotonic(), failures=failures)

    def _accord(self) -> Accord | None:
        """Return what who is started now is to do as the others do; None where nobody has served yet."""
        if not self._has_served:
            return None
        known = Accord.read(self._folder)
        others_serve = any(worker.process.is_alive() and worker.beat.value for worker in self._workers)
        return known if others_serve else Accord(usual_model=known.usual_model)

    def _watch(self) -> None:
        while True:
            sentinels = [worker.process.sentinel for worker in self._workers if worker.due is None]
            dues = [worker.due for worker in self._workers if worker.due is not None]
            timeout_s = max(0.0, min([_LOOK_S, *(due - time.monotonic() for due in dues)]))
            if self._stop_reader in wait([self._stop_reader, *sentinels], timeout_s):
                return
            for place, worker in enumerate(self._workers):
                if worker.due is None and not worker.process.is_alive():
                    self._bury(place, worker)
                elif worker.due is not None and worker.due <= time.monotonic():
                    self._start_again(place, worker)
                elif worker.due is None and worker.beat.value:
                    self._look_at(worker)

    def _look_at(self, worker: _Worker) -> None:
        """Kill a worker whose loop has not run for a while: it holds connections that others would answer.

        Looks are counted, not seconds: a machine or container that slept meanwhile has wedged nobody.
        """
        if time.monotonic() < worker.looked + _LOOK_S:
            return
        beat = worker.beat.value
        worker.missed = worker.missed + 1 if beat == worker.last_beat else 0
        worker.looked, worker.last_beat = time.monotonic(), beat
        if worker.missed == _LOOKS:
            log.error("worker does not answer, and is killed", worker=worker.process.name, pid=worker.process.pid)
            worker.process.kill()

    def _start_again(self, place: int, worker: _Worker) -> None:
        try:
            self._workers[place] = self._start(place, failures=worker.failures)
        except OSError as error:  # no memory, no descriptor, no process left just now: the others go on
            worker.failures += 1
            again_in_s = pause_s(worker.failures)
            worker.due = time.monotonic() + again_in_s
            log.error("worker cannot be started", worker=worker.process.name, reason=str(error), again_in_s=again_in_s)

    def _bury(self, place: int, worker: _Worker) -> None:
        """Note when a dead one is to be started again. Raises StartupError where none serves or ever did."""
        from prometheus_client import multiprocess

        pid, exit_code = worker.process.pid, worker.process.exitcode
        multiprocess.mark_process_dead(place)  # type: ignore[no-untyped-call]  # its gauges are gone, its counts stay
        self._has_served |= any(other.beat.value for other in self._workers)
        why = "no room left for its metrics; name another folder in TMPDIR" if exit_code == _NO_ROOM else ""
        if not self._has_served:
            told = why or "its log says why"
            raise StartupError(f"worker {place} ended with exit code {exit_code} before any served; {told}")
        is_steady = bool(worker.beat.value) and time.monotonic() - worker.started > _STEADY_S
        worker.failures = 0 if is_steady else worker.failures + 1
        again_in_s = pause_s(worker.failures)
        worker.due = time.monotonic() + again_in_s
        facts = {"reason": why} if why else {}
        name = worker.process.name
        log.error("worker died", worker=name, pid=pid, exit_code=exit_code, again_in_s=again_in_s, **facts)

    def _stop_all(self) -> None:
        """Let every process drain; whoever is not done by then, or at a second signal, is killed: see `process`."""
        self._signals()
        alive = [worker.process for worker in self._workers if worker.process.is_alive()]
        for process in alive:
            process.terminate()
        # Two million s at most: poll(2) takes milliseconds in 31 bits.
        until = time.monotonic() + self._settings.lame_duck_s + self._settings.drain_s + _KILL_AFTER_S
        while sentinels := [process.sentinel for process in alive if process.is_alive()]:
            ended = wait([self._stop_reader, *sentinels], max(0.0, until - time.monotonic()))
            if not ended or self._signals() - {signal.SIGHUP}:
                break
        for process in alive:
            process.kill()
            process.join()

    def _signals(self) -> set[int]:
        """Return which have come since the last call."""
        self._stop_reader.setblocking(False)
        with suppress(BlockingIOError):
            return set(self._stop_reader.recv(4096))
        return set()
