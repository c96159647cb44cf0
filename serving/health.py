"""grpc.health.v1 for a catalogue: the whole server, the service, every model, and every version as "model/version".

Not the library's servicer (grpcio-health-checking 1.85): its Watch holds a lock while it writes, so that one watcher
who reads nothing kept the status of all from changing, and the server from ending.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.calls import Context
from serving.rpcs import Rpcs
from serving.shelves import Entry

NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_MAX_WATCHERS: Final = 1000
_GONE: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN  # what watchers see of a name that is not known


class HealthBoard(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated, without types
    """What the health service says, and the servicer that says it. Used from the event loop."""

    def __init__(self, *services: str) -> None:
        self._always = ("", *services)
        self._shown: dict[str, health_pb2.HealthCheckResponse.ServingStatus] = {}
        self._has_changed = asyncio.Event()  # set for good at the next change, and replaced by another
        self._is_stopped = False
        self._watchers = 0

    def register(self, rpcs: Rpcs) -> None:
        """Add the health service to a server's."""
        health_pb2_grpc.add_HealthServicer_to_server(self, rpcs)

    def show(self, entries: Sequence[Entry]) -> None:
        """Say how things stand; watchers hear of what has changed. A model serves while a version of it does."""
        if self._is_stopped:
            return
        is_serving = any(entry.state == "READY" for entry in entries)
        wanted = dict.fromkeys(self._always, SERVING if is_serving else NOT_SERVING)
        for entry in entries:
            status = SERVING if entry.state == "READY" else NOT_SERVING
            wanted[f"{entry.name}/{entry.version}"] = status
            if wanted.get(entry.name) != SERVING:
                wanted[entry.name] = status
        self._tell(wanted)

    def stop(self) -> None:
        """Say NOT_SERVING for good, everywhere."""
        self._is_stopped = True
        self._tell(dict.fromkeys(self._shown, NOT_SERVING))

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:  # noqa: N802 -- rpc
        """Answer once. NOT_FOUND for a name that is not known."""
        status = self._shown.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service, model or version")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 -- rpc
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer at once and at every change from what was last told; one that a slow caller misses is left out."""
        if self._watchers >= _MAX_WATCHERS:  # each takes 20 KB, and strangers may watch
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WATCHERS:,} calls watch already")
        self._watchers += 1
        try:
            async for status in self._changes(request.service):
                yield health_pb2.HealthCheckResponse(status=status)
        finally:
            self._watchers -= 1

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802 -- rpc
        """Refuse: strangers may ask for health, but not for what is here."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "health is told by name; ListModels lists what is here")

    async def _changes(self, service: str) -> AsyncIterator[health_pb2.HealthCheckResponse.ServingStatus]:
        told = None
        while True:
            has_changed = self._has_changed  # before the look, or a change between the two would be missed
            status = self._shown.get(service, _GONE)
            if status != told:
                yield status
                told = status
            await has_changed.wait()

    def _tell(self, wanted: dict[str, health_pb2.HealthCheckResponse.ServingStatus]) -> None:
        if wanted != self._shown:
            self._shown = wanted
            self._has_changed.set()
            self._has_changed = asyncio.Event()
