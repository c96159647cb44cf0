"""A server for all that is thrown at one; and at the end, how many inputs were tried."""

import asyncio
import logging
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from serving.catalogue import Catalogue
from serving.loading import load_model
from serving.metrics import Metrics
from serving.server import Server
from serving.settings import ServerSettings
from tests.serving import tiny_bundle

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode does not: `import tried`

import tried

SETTINGS = ServerSettings(
    address="127.0.0.1:0",
    http_address=":0",
    instances=1,
    max_images_per_request=8,
    max_image_bytes=2**18,
    max_message_bytes=2**20,
    max_pixels=10**6,
)
INSIDE = ("Traceback", "site-packages", "object at 0x", "/tests/", "/serving/", "/bundle/")
WAIT_S = 30


@dataclass(frozen=True)
class Served:
    """Where it listens, its models' folder, and what it and its libraries have logged."""

    address: str
    http_port: int
    models: Path
    log: list
    library_errors: list

    def check_text(self, text):
        """What it tells holds nothing of its inside."""
        for inside in (*INSIDE, str(self.models)):
            assert inside not in text

    def check_log(self):
        """Nothing that was thrown at it was unforeseen."""
        assert [entry for entry in self.log if entry["log_level"] in ("error", "critical")] == []
        assert [record.getMessage() for record in self.library_errors] == []


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server on a thread of its own."""
    errors = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = errors.append
    logging.getLogger().addHandler(handler)
    with capture_logs() as log:
        yield from _served(tmp_path_factory, log, errors)
    logging.getLogger().removeHandler(handler)


def _served(tmp_path_factory, log, errors):
    models = tmp_path_factory.mktemp("served")
    tiny_bundle.write(models)
    begun, stop = Future(), Future()

    async def serve():
        metrics = Metrics()
        catalogue = Catalogue(models, lambda folder: load_model(folder, SETTINGS, metrics=metrics))
        running = Server(catalogue, SETTINGS, metrics=metrics)
        await running.startup()
        await running.say_serving()
        begun.set_result(Served(f"127.0.0.1:{running.port}", running.http_port, models, log, errors))
        await asyncio.wrap_future(stop)
        await running.shutdown()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    yield begun.result(WAIT_S)
    stop.set_result(None)
    thread.join(WAIT_S)


def pytest_terminal_summary(terminalreporter):
    """One line a kind of input."""
    for name, count in tried.COUNTS.items():
        terminalreporter.write_line(f"fuzz: {count:,} {name}")
