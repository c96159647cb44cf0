"""A server in this process for tests of its life: its own event loop in a thread, a load, conditions to wait for."""

import asyncio
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial

import grpc
import tiny_bundle

from protos import classifier_pb2 as pb
from protos import classifier_pb2_grpc
from serving.catalogue import Catalogue
from serving.loading import load_model
from serving.metrics import Metrics
from serving.server import Server
from serving.settings import ServerSettings

LIMIT_S = 60.0


def until(condition, *, what="it"):
    """Wait for a condition, and return what it gave."""
    end = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {LIMIT_S} s"
        pause.wait(0.005)
    return found


class Running:
    """A server that says SERVING; `address` is where."""

    def __init__(self, models, *, load=None, **changes):
        defaults = {"address": "127.0.0.1:0", "http_address": "off", "watch_s": 0.02, "instances": 1}
        self.settings = ServerSettings(**{**defaults, **changes})
        self.metrics = Metrics()
        self.catalogue = Catalogue(
            models,
            load or (lambda folder: load_model(folder, self.settings, metrics=self.metrics)),
            default_model=self.settings.default_model,
            policy=self.settings.policy(),
            on_refused=lambda name: self.metrics.load_failures.labels(name).inc(),
            trusted=self.settings.require_signature,
        )

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.call(self._start())
        self.address = f"127.0.0.1:{self._server.port}"
        return self

    def __exit__(self, *_):
        self.call(self._server.shutdown())
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine):
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT_S)

    def states(self, name="colours"):
        """The version numbers and states of a model."""
        return {entry.version: entry.state for entry in self.catalogue.entries() if entry.name == name}

    def answering(self):
        """The version that answers without a version."""
        return self.catalogue.find().contract.version

    def is_ready(self):
        """What HTTP and V2 say of the whole server."""
        return self._server._is_ready()

    async def _start(self):
        self._server = Server(self.catalogue, self.settings, metrics=self.metrics)
        await self._server.startup()
        await self._server.say_serving()


def with_runs(served, behave):
    """The model, with `behave(rows, run)` in place of each of its runs."""
    for instance in served._batcher._instances:
        instance._run = instance._run_lone = partial(behave, run=instance._run)
    return served


def held_by(may_run, server, *, on_run=lambda: None):
    """A loader of models for a Running server, whose engine waits for an event."""

    def behave(rows, run):
        on_run()
        may_run.wait(LIMIT_S)
        return run(rows)

    return lambda folder: with_runs(load_model(folder, server.settings, metrics=server.metrics), behave)


def classify(channel, label="red", **fields):
    """One call of a plain stub; the version that answered."""
    stub = classifier_pb2_grpc.ClassifierStub(channel)
    answer = stub.Classify(
        pb.ClassifyRequest(images=[tiny_bundle.picture(label)], **fields), timeout=LIMIT_S, wait_for_ready=True
    )
    assert answer.results[0].predictions[0].label == label
    return answer.version


class Load:
    """Callers that never stop: what they got, and every failure."""

    def __init__(self):
        self.versions, self.failures, self.calls = [], [], 0
        self.stopping, self.threads = threading.Event(), []

    def stop(self):
        """Let the calls under way end, and make no more."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(LIMIT_S)

    @property
    def seen(self):
        return set(self.versions)

    def more(self, count=20):
        """Wait until so many more calls have been answered."""
        goal = self.calls + count
        until(lambda: self.calls >= goal or self.failures, what="more calls")


@contextmanager
def load(call, *, callers=3):
    """Repeat `call` on so many threads; it returns the version that answered."""
    running = Load()

    def loop():
        while not running.stopping.is_set():
            try:
                running.versions.append(call())
            except Exception as error:
                running.failures.append(error)
            running.calls += 1

    running.threads = [threading.Thread(target=loop, daemon=True) for _ in range(callers)]
    for thread in running.threads:
        thread.start()
    try:
        yield running
    finally:
        running.stop()
    assert running.calls
    assert not running.failures, running.failures


@contextmanager
def plain_channel(address, **options):
    """A channel as anyone makes it: no retry policy, no options."""
    with grpc.insecure_channel(address, options=list(options.items())) as channel:
        yield channel


def counted(metrics):
    """How many requests were counted, by door and status, where there was one."""
    (family,) = metrics.requests.collect()
    totals = Counter()
    for sample in family.samples:
        totals[sample.labels["door"], sample.labels["status"]] += sample.value
    return {outcome: total for outcome, total in totals.items() if total}
