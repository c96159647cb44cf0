"""grpc.health.v1 for a catalogue: the whole server, the service, every model, and every version as "model/version"."""

from collections.abc import Sequence
from typing import Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving.rpcs import Rpcs
from serving.shelves import Entry

NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_GONE: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN  # what watchers see of a name that is not known


class HealthBoard:
    """What the health service says. Used from the event loop."""

    def __init__(self, *services: str) -> None:
        self._always = ("", *services)
        self._servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # made at import
        self._shown: dict[str, health_pb2.HealthCheckResponse.ServingStatus] = {}

    def register(self, rpcs: Rpcs) -> None:
        """Add the health service to a server's."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, rpcs)

    async def show(self, entries: Sequence[Entry], *, is_serving: bool) -> None:
        """Say how things stand; watchers hear of what has changed. A model serves while a version of it does."""
        wanted = dict.fromkeys(self._always, SERVING if is_serving else NOT_SERVING)
        for entry in entries:
            status = SERVING if is_serving and entry.state == "READY" else NOT_SERVING
            wanted[f"{entry.name}/{entry.version}"] = status
            if wanted.get(entry.name) != SERVING:
                wanted[entry.name] = status
        for name, status in (dict.fromkeys(self._shown, _GONE) | wanted).items():
            if self._shown.get(name) != status:
                await self._servicer.set(name, status)
        self._shown = wanted

    async def stop(self) -> None:
        """Say NOT_SERVING for good, everywhere."""
        await self._servicer.enter_graceful_shutdown()
