"""Who is let in over gRPC: tokens before a request is read; in the open beyond this machine only where asked for."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from serving.errors import InvalidRequestError, ServingError, StartupError
from serving.observability import name_answer
from serving.service import Context, abort
from serving.settings import ServerSettings
from serving.tokens import Gate

_LOCAL_SCHEMES: Final = ("unix:", "unix-abstract:")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # of every rpc: messages of any type pass
Behaviour = Callable[[object, Context], Any]  # its result: awaitable, or an async iterator


def check_exposure(settings: ServerSettings, *, address: str) -> None:
    """Raise StartupError for an address that strangers could reach, or read along, unless that is asked for.

    An empty address is not listened on.
    """
    if address and not (settings.insecure or settings.tls_cert or is_loopback(address)):
        raise StartupError(
            f"{address}: can be reached from other machines, and would be in the open; give --tls-cert and --tls-key, "
            "or listen on localhost:PORT, or say --insecure"
        )


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches an address of gRPC's forms: host:port, [v6]:port, ipv4:…, unix:…"""
    if address.startswith(_LOCAL_SCHEMES):
        return True
    places = address.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:").lstrip("/").split(",")
    return all(_is_loopback_host(place.rpartition(":")[0].strip("[]")) for place in places)


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not subscriptable at run time
    """Asks the gate at every call, and in a stream at every message: a long stream is many requests.

    Asks `check_room`, with the method's name, before a unary call's request is read: it may raise a ServingError.

    Bytes that are no message are refused here too: the library would tell the caller the names of our classes, and the
    log a stack.
    """

    def __init__(
        self,
        gate: Gate | None,
        *,
        open_services: tuple[str, ...] = (),
        check_room: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._gate = gate
        self._check_room = check_room
        self._open = tuple(f"/{service}/" for service in open_services)
        self._known: dict[str, Handler] = {}  # method -> guarded handler: 9 µs a call, made once

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        method, authorization = handler_call_details.method, _authorization(handler_call_details)
        gate = None if method.startswith(self._open) else self._gate
        try:
            if gate is not None and handler is not None and handler.request_streaming:
                gate.authenticate(authorization)
                return _guarded(handler, lambda: gate.check(authorization))
            if gate is not None:
                gate.check(authorization)
            self._check_room(method)
        except ServingError as error:
            return _refusal(error)
        return self._remembered(handler, method)

    def _remembered(self, handler: Handler, method: str) -> Handler:
        if handler is None:  # which the stubs forget: no such method, the library says UNIMPLEMENTED
            return handler
        if method not in self._known:
            self._known[method] = _guarded(handler, lambda: None)
        return self._known[method]


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    found = [value for key, value in details.invocation_metadata or () if key == "authorization"]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None


def _refusal(error: ServingError) -> Handler:
    """Return a handler that ends a call of any kind without reading a message of it."""

    async def refuse(requests: AsyncIterator[bytes], context: Context) -> None:  # noqa: ARG001 -- the signature is grpc's
        name_answer(context)
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _guarded(handler: Handler, check: Callable[[], object]) -> Handler:
    """Return the handler with its messages decoded here, and with `check` called at every message of a stream."""
    words = {False: "unary", True: "stream"}
    kind = f"{words[handler.request_streaming]}_{words[handler.response_streaming]}"
    behaviour, read = cast(Behaviour, getattr(handler, kind)), _reader(handler, check)

    async def answer(incoming: object, context: Context) -> object:
        try:
            return await behaviour(read(incoming), context)
        except ServingError as error:
            await abort(context, error)

    async def generate(incoming: object, context: Context) -> AsyncIterator[object]:
        try:
            async for message in behaviour(read(incoming), context):
                yield message
        except ServingError as error:
            await abort(context, error)

    wrapped = generate if inspect.isasyncgenfunction(behaviour) else answer  # both are ways to write a servicer
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return cast(Handler, make(wrapped, None, handler.response_serializer))


def _reader(handler: Handler, check: Callable[[], object]) -> Callable[[Any], object]:
    """Return what turns a call's bytes, or its stream of bytes, into messages."""
    decode = handler.request_deserializer or bytes

    def one(message: bytes) -> object:
        try:
            return decode(message)
        except DecodeError as error:
            raise InvalidRequestError("found bytes that are no message of this method") from error

    async def each(messages: AsyncIterable[bytes]) -> AsyncIterator[object]:
        incoming, end = aiter(messages), object()
        # The library never frees a message that comes after its read was cancelled: one for each stream that is ended
        # early. Shielded, a read that nobody waits for any more ends with its call.
        while (message := await asyncio.shield(anext(incoming, end))) is not end:
            check()
            yield one(cast(bytes, message))

    return each if handler.request_streaming else one
