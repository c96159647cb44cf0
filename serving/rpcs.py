"""Which code answers a gRPC call: found by its method, behind the request's id, the tokens and the queue's door.

In place of interceptors, which are coroutines around every call, and of methods registered with the library, each of
which its loop waits for by itself: a call of 140 KB costs a tenth less CPU so, with an engine that does nothing.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from serving.arrivals import Arrivals, late
from serving.calls import Context, abort
from serving.errors import InvalidRequestError, MessageTooLargeError, ServingError
from serving.fields import count_fields, input_type
from serving.observability import HEADER, begin_request, current_request_id, name_caller
from serving.packed import Unpacker, is_packed, unpack
from serving.stages import Tracing
from serving.tokens import Gate

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # of every rpc: messages of any type pass
Behaviour = Callable[[object, Context], Any]  # its result: awaitable, or an async iterator
_END_S: Final = 0.01  # after which the library says that a call has ended of which it says that no message will come
_MAX_OPEN_BYTES: Final = 4096  # of a message to a service that asks for no token: a name


class Rpcs(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not subscriptable at run time
    """The one generic handler of a server, and what the generated code adds its services to.

    Asks the gate at every call, and in a stream at every message: a long stream is many requests. Asks `check_room`,
    with the method's name and the seconds left, before a unary call's request is read: it may raise a ServingError.

    Messages are asked for here, also those of calls that bring one, as `arrivals` wants to know; to the caller that
    makes no difference. Bytes that are no message are refused here too: the library would tell the caller the names of
    our classes, and the log a stack. So are messages of more than `max_fields`, before they are decoded, and large ones
    to the open services, which strangers may call. `on_refusal` hears of all of these, with the method's name. Whatever
    a servicer raises ends its call as `calls.abort` says.
    """

    def __init__(
        self,
        gate: Gate | None,
        *,
        arrivals: Arrivals,
        unpacker: Unpacker,
        max_fields: int,
        open_services: tuple[str, ...] = (),
        check_room: Callable[[str, float | None], None] = lambda *_: None,
        on_refusal: Callable[[str, BaseException], None] = lambda *_: None,
        tracing: Tracing | None = None,
    ) -> None:
        self._gate = gate
        self._arrivals = arrivals
        self._unpacker = unpacker
        self._max_fields = max_fields
        self._check_room = check_room
        self._on_refusal = on_refusal
        self._tracing = tracing
        self._open = tuple(f"/{service}/" for service in open_services)
        self._guarded: dict[str, Handler] = {}  # by method
        self._streams: set[str] = set()  # methods whose calls bring many messages

    def add_generic_rpc_handlers(self, handlers: Iterable[object]) -> None:
        """Do nothing: generated code adds the same handlers by method too."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Add a service, as the generated code does."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            self._guarded[method] = self._guard(handler, method)
            if handler.request_streaming:
                self._streams.add(method)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        """See grpc.GenericRpcHandler. Runs in the task that will run the rpc, so that what it binds is seen there."""
        method, metadata = handler_call_details.method, handler_call_details.invocation_metadata or ()
        begin_request(next((str(value) for name, value in metadata if name == HEADER), ""))
        if self._tracing:
            self._tracing.join({name: value for name, value in metadata if isinstance(value, str)})
        try:
            if gate := self._gate_of(method):
                ask = gate.authenticate if method in self._streams else gate.check
                name_caller(ask(_authorization(metadata)))
        except ServingError as error:
            return _refusal(error)
        return self._guarded.get(method)  # None: no such method, the library says UNIMPLEMENTED

    def _gate_of(self, method: str) -> Gate | None:
        return None if method.startswith(self._open) else self._gate

    def _guard(self, handler: Handler, method: str) -> Handler:
        """Return the handler with its messages read and decoded here."""
        words = {False: "unary", True: "stream"}
        answers = words[handler.response_streaming]
        behaviour = cast(Behaviour, getattr(handler, f"{words[handler.request_streaming]}_{answers}"))
        decode = self._careful(handler.request_deserializer or bytes, method)

        async def incoming(context: Context) -> object:
            if handler.request_streaming:
                return self._messages(context, method, decode=decode)
            return await self._message(context, method, decode=decode)

        async def answer(_: object, context: Context) -> object:
            _name_answer(context)
            try:
                return await behaviour(await incoming(context), context)
            except Exception as error:  # noqa: BLE001 -- the table decides, the unforeseen is logged with its traceback
                await abort(context, error)

        async def generate(_: object, context: Context) -> AsyncIterator[object]:
            _name_answer(context)
            try:
                async for message in behaviour(await incoming(context), context):
                    yield message
            except Exception as error:  # noqa: BLE001 -- as above
                await abort(context, error)

        wrapped = generate if inspect.isasyncgenfunction(behaviour) else answer  # both are ways to write a servicer
        make = getattr(grpc, f"stream_{answers}_rpc_method_handler")
        return cast(Handler, make(wrapped, None, handler.response_serializer))

    async def _message(self, context: Context, method: str, *, decode: Callable[[bytes], object]) -> object:
        """Return the message of a call that brings one."""
        with self._arrivals.single():
            message = await self._arrivals.read(
                context, method, is_stream=False, check=lambda: self._check_room(method, context.time_remaining())
            )
        if message is None:
            raise await self._no_message(context, method)
        try:
            return await self._decoded(message, method, decode=decode)
        except asyncio.CancelledError as error:  # the caller has gone while it was unpacked
            self._on_refusal(method, late(context) or error)
            raise

    async def _no_message(self, context: Context, method: str) -> ServingError:
        """Count a call whose messages end without one; return why, or end as cancelled where the call has ended too."""
        was_late = late(context)
        try:
            await asyncio.sleep(_END_S)
        except asyncio.CancelledError as cancelled:  # the caller has gone, or the message was too large
            self._on_refusal(method, was_late or cancelled)
            raise
        error = was_late or InvalidRequestError("found no message, wanted one")
        self._on_refusal(method, error)
        return error

    async def _messages(
        self, context: Context, method: str, *, decode: Callable[[bytes], object]
    ) -> AsyncIterator[object]:
        """Yield the messages of a call that may bring many, each as far as the gate allows."""
        gate = self._gate_of(method)
        context.add_done_callback(self._arrivals.forget)  # type: ignore[arg-type]  # the stubs want it named ctx
        # The library never frees a message that comes after its read was cancelled: one for each stream that is ended
        # early. Shielded, a read that nobody waits for any more ends with its call.
        while True:
            reading = asyncio.ensure_future(self._arrivals.read(context, method, is_stream=True))
            reading.add_done_callback(_hear)
            message = await asyncio.shield(reading)
            if message is None:
                return
            if gate:
                gate.check(_authorization(context.invocation_metadata()))
            decoded = await self._decoded(message, method, decode=decode)
            del message, reading  # or they would be in memory for as long as the stream is silent
            yield decoded
            del decoded

    async def _decoded(self, message: bytes, method: str, *, decode: Callable[[bytes], object]) -> object:
        try:
            if method.startswith(self._open):
                message = _small(message)
            elif is_packed(message):
                message = await self._unpacker.unpack(message)
            return decode(message)
        except ServingError as error:
            self._on_refusal(method, error)
            raise

    def _careful(self, decode: Callable[[bytes], object], method: str) -> Callable[[bytes], object]:
        """Return what decodes messages of a method, where these are such."""
        kind, most = input_type(method), self._max_fields

        def careful(message: bytes) -> object:
            if kind is not None and count_fields(message, kind, most=most) > most:
                raise InvalidRequestError(
                    f"found more than {most:,} fields in a message, or numbers for as many; send several requests, and "
                    "tensors as raw contents"
                )
            try:
                return decode(message)
            except DecodeError as error:
                raise InvalidRequestError("found bytes that are no message of this method") from error

        return careful


def _small(message: bytes) -> bytes:
    """Return a message of an open service, unpacked; nobody waits for his turn there. Raises MessageTooLargeError."""
    if len(message) > _MAX_OPEN_BYTES:
        raise MessageTooLargeError(f"found {len(message):,} bytes, wanted at most {_MAX_OPEN_BYTES:,}")
    return unpack(message, _MAX_OPEN_BYTES) if is_packed(message) else message


def _authorization(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    found = [value for key, value in metadata or () if key == "authorization"]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None


def _refusal(error: ServingError) -> Handler:
    """Return a handler that ends a call of any kind without reading a message of it."""

    async def refuse(requests: AsyncIterator[bytes], context: Context) -> None:  # noqa: ARG001 -- the signature is grpc's
        _name_answer(context)
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _name_answer(context: Context) -> None:
    """Put the request's id among the trailers of an rpc's answer."""
    context.set_trailing_metadata(((HEADER, current_request_id()),))


def _hear(task: "asyncio.Task[Any]") -> None:
    """Ask for the error of a task that nobody may wait for any more: it would go to the log."""
    if not task.cancelled():
        task.exception()
