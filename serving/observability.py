"""Give every request an id, at both doors: the caller's x-request-id or a new one, in every log line and in the answer.

`Envelope` goes around the HTTP application, `RequestIds` before the rpcs. What is logged of a request stands in
`dispatcher`; pictures never are.
"""

import inspect
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeAlias, cast

import grpc
import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from serving.stages import Tracing

HEADER: Final = "x-request-id"
_GOOD_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")  # nothing that could forge a log line
_SECURITY_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # the page sets a wider one
}

Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"  # a string: not generic at run time
Context = grpc.aio.ServicerContext[object, object]
Unary = Callable[[object, Context], Awaitable[object]]
Stream = Callable[[AsyncIterator[object], Context], AsyncIterator[object]]
SyncStream = Callable[[Iterator[object], grpc.ServicerContext], Iterator[object]]  # all that the stubs know

log = structlog.get_logger(__name__)


def request_id(given: str) -> str:
    """Return the caller's id where it is usable, else a new one of 16 hexadecimal digits."""
    return given if _GOOD_ID.fullmatch(given) else secrets.token_hex(8)


class Envelope:
    """Around an ASGI application: the id, the security headers, and no exception beyond this point."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing | None = None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(HEADER.encode(), b"").decode("latin-1")
        identity = request_id(given)
        bind_contextvars(request_id=identity)
        if self._tracing:
            self._tracing.join({name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()})

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer[HEADER] = identity
                for name, value in _SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # Starlette has answered "internal error" and raises it again
            log.error("unforeseen error", exc_info=error)


class RequestIds(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """The same for rpcs: x-request-id among the metadata, and among the trailers of unary and streaming answers."""

    def __init__(self, *, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._named: dict[str, Handler] = {}  # by rpc: as many as are registered

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Runs in the task that will run the rpc, so that what it binds is seen there."""
        metadata = handler_call_details.invocation_metadata or ()
        bind_contextvars(request_id=request_id(next((str(value) for name, value in metadata if name == HEADER), "")))
        if self._tracing:
            self._tracing.join({name: value for name, value in metadata if isinstance(value, str)})
        method = handler_call_details.method
        named = self._named.get(method)
        if named is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # an unknown rpc, which must not be remembered: strangers choose the name
                return handler
            named = self._named[method] = _named(handler)
        return named


def _named(handler: Handler) -> Handler:
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _unary(cast(Unary, handler.unary_unary)), handler.request_deserializer, handler.response_serializer
        )
    if handler.stream_stream is not None:
        if inspect.isasyncgenfunction(handler.stream_stream):
            named: object = _generator(cast(Stream, handler.stream_stream))
        else:
            named = _unary(cast(Unary, handler.stream_stream))
        return grpc.stream_stream_rpc_method_handler(
            cast(SyncStream, named), handler.request_deserializer, handler.response_serializer
        )
    return handler


def _unary(inner: Unary) -> Unary:
    async def named(request: object, context: Context) -> object:
        name_answer(context)
        return await inner(request, context)

    return named


def _generator(inner: Stream) -> Stream:
    async def named(requests: AsyncIterator[object], context: Context) -> AsyncIterator[object]:
        name_answer(context)
        async for answer in inner(requests, context):
            yield answer

    return named


def name_answer(context: Context) -> None:
    """Put the id that `RequestIds` found among the trailers of an rpc's answer."""
    context.set_trailing_metadata(((HEADER, structlog.contextvars.get_contextvars()["request_id"]),))
