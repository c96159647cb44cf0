"""The server's life: startup, serving, shutdown. It listens at once, and says SERVING only after every proof.

SIGTERM or SIGINT: health NOT_SERVING, the lame-duck time, no new requests, the queue finished, exit 0. A second
signal exits at once.
"""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import classifier_pb2_grpc, open_inference_pb2_grpc
from serving.catalogue import Catalogue
from serving.classifier import load_model
from serving.dispatcher import Dispatcher
from serving.errors import StartupError
from serving.http_body import BodyLimits
from serving.http_door import HttpDoor
from serving.http_server import HttpServer, http_address
from serving.metrics import Metrics
from serving.observability import Envelope, RequestIds
from serving.open_inference import SERVICE_NAME as INFERENCE_SERVICE_NAME
from serving.open_inference import InferenceService
from serving.plan_search import Planner
from serving.service import SERVICE_NAME, ClassifierService
from serving.settings import ServerSettings
from serving.stages import Tracing

_FLUSH_S: Final = 0.5  # for answers that are written but not yet sent, when only watchers are still connected
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_SERVICE_NAMES: Final = (SERVICE_NAME, INFERENCE_SERVICE_NAME)

log = structlog.get_logger(__name__)


class Server:
    """One server in one event loop: `startup`, then `shutdown`. `port` is the bound one after `startup`."""

    def __init__(
        self, catalogue: Catalogue, settings: ServerSettings, *, metrics: Metrics, tracing: Tracing | None = None
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._grpc = grpc.aio.server(options=_options(settings), interceptors=(RequestIds(tracing=tracing),))
        self._dispatcher = Dispatcher(
            catalogue,
            max_images_per_request=settings.max_images_per_request,
            metrics=metrics,
            tracing=tracing,
        )
        self._inference = InferenceService(
            self._dispatcher,
            metrics,
            max_images_per_request=settings.max_images_per_request,
            is_serving=lambda: self._is_serving,
        )
        self._is_serving = False
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # made at import
        self._http = self._make_http(metrics, tracing)
        self.port = 0

    @property
    def http_port(self) -> int:
        """The bound port of the HTTP door, 0 where it is off."""
        return self._http.port

    async def startup(self) -> None:
        """Listen, load every model off the event loop, then say SERVING. Raises StartupError."""
        classifier_pb2_grpc.add_ClassifierServicer_to_server(ClassifierService(self._dispatcher), self._grpc)  # type: ignore[no-untyped-call]  # generated
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._inference, self._grpc)  # type: ignore[no-untyped-call]  # generated
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((*_SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        await self._say(_NOT_SERVING)
        try:
            self.port = self._grpc.add_insecure_port(self._settings.address)
        except RuntimeError as error:
            raise StartupError(f"{self._settings.address}: cannot listen there; choose another --address") from error
        await self._grpc.start()
        self._http.start()
        await asyncio.to_thread(self._catalogue.load_all)

    async def say_serving(self) -> None:
        """Report SERVING overall, for each service and for each model."""
        self._is_serving = True
        await self._say(_SERVING)

    async def shutdown(self) -> None:
        """Drain: see the module."""
        self._is_serving = False
        await self._health.enter_graceful_shutdown()
        if self._settings.lame_duck_s:
            await asyncio.sleep(self._settings.lame_duck_s)
        self._catalogue.start_draining()
        self._http.stop_accepting()
        stopping = asyncio.create_task(self._grpc.stop(self._settings.drain_s))
        idle = asyncio.create_task(self._dispatcher.idle.wait())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await self._grpc.stop(min(_FLUSH_S, self._settings.drain_s))  # health watchers would hold it for all of drain_s
        await stopping
        await self._http.stop(_FLUSH_S)
        await asyncio.to_thread(self._catalogue.close, self._settings.drain_s)

    async def abandon(self) -> None:
        """Stop listening at once, after a failed startup."""
        await self._grpc.stop(0)
        await self._http.stop(0)
        await asyncio.to_thread(self._catalogue.close, 0.0)

    def _make_http(self, metrics: Metrics, tracing: Tracing | None) -> HttpServer:
        settings = self._settings
        limits = BodyLimits(
            max_bytes=settings.max_message_bytes,
            max_images=settings.max_images_per_request,
            budget_bytes=settings.max_queue_bytes,
        )
        door = HttpDoor(self._dispatcher, metrics=metrics, limits=limits, is_ready=lambda: self._is_serving)
        address = http_address(settings.http_address, beside=settings.address)
        return HttpServer(Envelope(door.app(), tracing=tracing), address, drain_s=settings.drain_s)

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        ready = {entry.name for entry in self._catalogue.entries() if entry.state == "READY"}
        for name in ("", *_SERVICE_NAMES, *sorted(ready)):
            await self._health.set(name, status)


def run(models: Path, settings: ServerSettings) -> None:
    """Serve the folder `models` until a signal; blocks. Raises StartupError where nothing can be served."""
    uvloop.run(_main(models, settings))


async def _main(models: Path, settings: ServerSettings) -> None:
    started = time.monotonic()
    stop = _stop_on_signal()
    metrics, planner = Metrics(), Planner()
    catalogue = Catalogue(
        models,
        lambda folder: load_model(folder, settings, metrics=metrics, planner=planner),
        default_model=settings.default_model,
    )
    tracing = _start_tracing()
    server = Server(catalogue, settings, metrics=metrics, tracing=tracing)
    try:
        await server.startup()
    except BaseException:
        await server.abandon()
        raise
    if not stop.is_set():
        await server.say_serving()
        log.info(
            "SERVING",
            port=server.port,
            http_port=server.http_port,
            seconds=round(time.monotonic() - started, 2),
            pid=os.getpid(),
        )
    await stop.wait()
    log.info("draining")
    await server.shutdown()
    if tracing:
        await asyncio.to_thread(tracing.close)
    log.info("stopped")


def _start_tracing() -> Tracing | None:
    """Return tracing where the environment names a collector for it."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not any(map(os.environ.get, names)) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from serving import tracing
    except ImportError as error:
        raise StartupError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but not OpenTelemetry; install calotype[otel]"
        ) from error
    return tracing.start()


def _stop_on_signal() -> asyncio.Event:
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # clients behind balancers ping every 30 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),  # two servers on one port must fail, not share it silently
    ]
