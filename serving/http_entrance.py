"""What every HTTP request passes first: is there room for its connection, and is it one that HTTP allows?

And last: what is left of its body is read, or its caller might never see the answer.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import InvalidRequestError, NotReadyError, ServingError
from serving.http_door import on_error
from serving.http_server import SURPLUS


class Entrance:
    """Around the HTTP application. Whose connection is one too many, as its server says in the state, is turned away.

    Who is turned away is told in JSON like everybody else, and the connection closes, also after a body whose length is
    told twice: what follows may be another caller's, where something before us understood it otherwise (RFC 9112, 6.1).
    A target in absolute form, as of a proxy, means its path (RFC 9112, 3.2.2). A body that nobody wants may take
    `rest_s` seconds from the answer on.
    """

    def __init__(self, app: ASGIApp, *, rest_s: float) -> None:
        self._app = app
        self._rest_s = rest_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        receive, send = _to_the_end(receive, send, rest_s=self._rest_s)
        error = _objection(scope)
        if error is not None:
            refusal = await on_error(Request(scope), error)
            refusal.headers["connection"] = "close"
            return await refusal(scope, receive, send)
        if scope["path"].startswith(("http://", "https://")):
            _, _, place = scope["path"].partition("://")  # not urlsplit, which raises for some hosts
            scope = {**scope, "path": f"/{place.partition('/')[2]}"}
        return await self._app(scope, receive, send)


def _objection(scope: Scope) -> ServingError | None:
    headers = Headers(scope=scope)
    if scope["state"].get(SURPLUS):
        return NotReadyError("too many connections; try again later")
    if "transfer-encoding" in headers and "content-length" in headers:
        return InvalidRequestError("found Transfer-Encoding and Content-Length, wanted one of them")
    if not scope["path"].isprintable():  # Starlette takes a path and a line feed for the path, others may not
        return InvalidRequestError("found a control character in the path")
    return None


def _to_the_end(receive: Receive, send: Send, *, rest_s: float) -> tuple[Receive, Send]:
    """Read what is left of a body, and drop it, between an answer's last byte and its end.

    uvicorn (0.54) hangs up at the end of an answer after which the connection is not kept, as Python's urllib and
    HTTP/1.0 want it. Where the body is still coming then the system resets the connection, and the answer is lost.
    """
    is_whole = False

    async def receiving() -> Message:
        nonlocal is_whole
        message = await receive()
        is_whole = not message.get("more_body", False)
        return message

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False) and not is_whole:
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    while not is_whole:
                        await receiving()
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return receiving, sending
