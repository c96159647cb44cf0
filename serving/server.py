"""The server's life: startup, serving, shutdown. It listens at once, and says SERVING only after every proof.

While it serves it watches the models folder: see `catalogue` for what that brings.

A shutdown: health NOT_SERVING, the lame-duck time, then as `drain` says.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from protos import classifier_pb2_grpc, open_inference_pb2_grpc
from serving import http_server
from serving.access import check_exposure
from serving.accord import Accord
from serving.addresses import Address
from serving.arrivals import Arrivals
from serving.catalogue import Catalogue
from serving.connections import connection_options
from serving.credentials import server_credentials
from serving.dispatcher import Dispatcher
from serving.drain import FLUSH_S, Drain, left_s
from serving.errors import StartupError
from serving.health import HealthBoard
from serving.http_access import HEALTH_PATHS, TokenDoor
from serving.http_body import BodyLimits, BodyReader
from serving.http_door import HttpDoor
from serving.http_entrance import Entrance
from serving.http_server import HttpServer
from serving.listening import check_free
from serving.metrics import Door, Metrics
from serving.observability import Envelope
from serving.open_inference import SERVICE_NAME as INFERENCE_SERVICE_NAME
from serving.open_inference import InferenceService
from serving.packed import Unpacker
from serving.page import PAGE_PATHS
from serving.rpcs import Rpcs
from serving.service import SERVICE_NAME, ClassifierService
from serving.settings import ServerSettings
from serving.shadow import Shadow
from serving.stages import Tracing
from serving.tls import tell_validity, tls_files
from serving.tokens import Gate
from serving.watcher import Watcher

_FIELDS: Final = 1000  # of a message, and
_FIELDS_A_PICTURE: Final = 8  # of one beside it: far more than any client sends
_SERVICE_NAMES: Final = (SERVICE_NAME, INFERENCE_SERVICE_NAME)
_DOORS: Final[dict[str, Door]] = {  # the rpcs that bring pictures, one request a call
    f"/{SERVICE_NAME}/Classify": "classifier.v1",
    f"/{INFERENCE_SERVICE_NAME}/ModelInfer": "inference",
}
_STREAM_DOORS: Final[dict[str, Door]] = {  # a request a message
    f"/{SERVICE_NAME}/ClassifyStream": "classifier.v1",
    f"/{INFERENCE_SERVICE_NAME}/ModelStreamInfer": "inference",
}


class Server:
    """One server in one event loop: `startup`, `say_serving`, `shutdown`. `port` is the bound one after `startup`."""

    def __init__(
        self,
        catalogue: Catalogue,
        settings: ServerSettings,
        *,
        metrics: Metrics,
        tracing: Tracing | None = None,
        share: Callable[[Accord], None] = lambda _: None,
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._metrics = metrics
        self._share = share
        self._address = Address.parse(settings.address)
        self._http_address = None if settings.http_address == "off" else self._address.beside(settings.http_address)
        self._gate = Gate(settings.tokens, metrics=metrics) if settings.tokens else None
        self._arrivals = Arrivals(
            allowed_bytes=settings.memory_bytes,
            max_message_bytes=settings.max_message_bytes,
            on_refusal=self._count_refusal,
        )
        self._rpcs = self._make_rpcs(tracing)
        self._grpc = grpc.aio.server(options=connection_options(settings), handlers=(self._rpcs,))
        self._dispatcher = Dispatcher(
            catalogue,
            max_images_per_request=settings.max_images_per_request,
            metrics=metrics,
            tracing=tracing,
            shadow=Shadow(catalogue, metrics=metrics),
        )
        self._inference = InferenceService(
            self._dispatcher,
            metrics,
            max_images_per_request=settings.max_images_per_request,
            is_serving=self._is_ready,
        )
        self._is_serving = False
        self._bodies = BodyReader(
            BodyLimits(
                max_bytes=settings.max_message_bytes,
                max_images=settings.max_images_per_request,
                budget_bytes=settings.queue_bytes,
            )
        )
        self._http = self._make_http(metrics, tracing)
        self._drain = Drain(
            self._grpc,
            self._http,
            arrivals=self._arrivals,
            bodies=self._bodies,
            dispatcher=self._dispatcher,
            catalogue=catalogue,
        )
        self._health = HealthBoard(*_SERVICE_NAMES)
        self._watcher = Watcher(catalogue, self._publish, every_s=settings.watch_s, drain_s=settings.renewal_s)
        self.port = 0

    @property
    def http_port(self) -> int:
        """The bound port of the HTTP door, 0 where it is off."""
        return self._http.port

    async def startup(self) -> None:
        """Listen, and load every model off the event loop; one of several workers loads first. Raises StartupError."""
        for address in filter(None, (self._address, self._http_address)):
            check_exposure(self._settings, address)
        if self._gate:
            self._gate.open()
        classifier_pb2_grpc.add_ClassifierServicer_to_server(ClassifierService(self._dispatcher), self._rpcs)  # type: ignore[no-untyped-call]  # generated
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._inference, self._rpcs)  # type: ignore[no-untyped-call]  # generated
        self._health.register(self._rpcs)
        if self._settings.reflection:
            names = (*_SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            servicer = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]  # made at import
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._rpcs)
        self._health.show([])
        is_one_of_several = self._settings.workers > 1
        if is_one_of_several:  # as soon as it listens, the system gives it connections that others would have answered
            await asyncio.to_thread(self._catalogue.load_all)
        self.port = self._listen()
        await self._grpc.start()
        self._http.start()
        if not is_one_of_several:
            await asyncio.to_thread(self._catalogue.load_all)

    async def say_serving(self) -> None:
        """Report SERVING overall, for each service and for what is ready; watch the models folder from now on."""
        self._is_serving = True
        self._metrics.serving.set(1)
        self._publish()
        self._watcher.start()

    async def shutdown(self) -> bool:
        """Drain: see the module. Say whether all has ended, and no thread hangs in a folder that does not answer."""
        lame_duck_s = self._settings.lame_duck_s if self._is_serving else 0.0  # else nobody was sent here yet
        self._is_serving = False
        self._metrics.serving.set(0)
        self._health.stop()
        stopping_watch = asyncio.create_task(self._watcher.stop())
        if lame_duck_s:
            await asyncio.sleep(lame_duck_s)
        until = asyncio.get_running_loop().time() + self._settings.drain_s
        await self._drain.finish(until)
        await asyncio.wait({stopping_watch}, timeout=left_s(until))
        is_closed = await asyncio.to_thread(self._catalogue.close, max(FLUSH_S, left_s(until)))
        return stopping_watch.done() and is_closed

    async def abandon(self) -> None:
        """Stop listening at once, after a failed startup."""
        await self._grpc.stop(0)
        await self._http.stop()
        await asyncio.to_thread(self._catalogue.close, 0.0)

    def _make_rpcs(self, tracing: Tracing | None) -> Rpcs:
        settings = self._settings
        return Rpcs(
            self._gate,
            arrivals=self._arrivals,
            unpacker=Unpacker(settings.max_message_bytes),
            max_fields=_FIELDS + _FIELDS_A_PICTURE * settings.max_images_per_request,
            open_services=(health.SERVICE_NAME,) if settings.open_health else (),  # probes carry no token
            check_room=self._check_room,
            on_refusal=self._count_refusal,
            tracing=tracing,
        )

    def _make_http(self, metrics: Metrics, tracing: Tracing | None) -> HttpServer:
        settings = self._settings
        door = HttpDoor(self._dispatcher, metrics=metrics, bodies=self._bodies, is_ready=self._is_ready)
        open_paths = (*PAGE_PATHS, *(HEALTH_PATHS if settings.open_health else ()))  # the page asks for a token
        app = TokenDoor(door.app(), self._gate, open_paths=open_paths) if self._gate else door.app()
        return HttpServer(
            Envelope(Entrance(app, rest_s=http_server.OWED_S), tracing=tracing),
            self._http_address,
            drain_s=settings.drain_s,
            max_connections=settings.max_connections,
            files=tls_files(settings),
            is_shared=settings.workers > 1,
        )

    def _is_ready(self) -> bool:
        return self._is_serving and self._catalogue.can_answer

    def _check_room(self, method: str, time_left_s: float | None) -> None:
        door = _DOORS.get(method)
        if door is not None:
            self._dispatcher.check_room(door=door, time_left_s=time_left_s)

    def _count_refusal(self, method: str, error: BaseException) -> None:
        door = _DOORS.get(method) or _STREAM_DOORS.get(method)
        if door is not None:
            self._dispatcher.count_refusal(error, door=door)

    def _listen(self) -> int:
        address, files = self._settings.address, tls_files(self._settings)
        check_free(self._address, is_shared=self._settings.workers > 1)
        credentials = server_credentials(files) if files else None
        if files:
            tell_validity(files)
        try:
            if credentials is None:
                return self._grpc.add_insecure_port(address)
            return self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise StartupError(f"{address}: cannot listen there; choose another --address") from error

    def _publish(self) -> None:
        """Tell health, the metrics and other workers what serves by now."""
        entries = self._catalogue.entries()
        self._health.show(entries)
        self._metrics.show_versions(
            answering=[(entry.name, entry.version) for entry in entries if self._catalogue.answers(entry)],
            refused=[entry.name for entry in entries if entry.reason],
        )
        self._share(self._catalogue.accord)
