"""What every HTTP request passes first: is there room for its connection, and is it one that HTTP allows?"""

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import InvalidRequestError, NotReadyError, ServingError
from serving.http_door import on_error


class Entrance:
    """Around the HTTP application. `is_full` says whether more connections are here than may be.

    Who is turned away is told in JSON like everybody else, and the connection closes, also after a body whose length is
    told twice: what follows may be another caller's, where something before us understood it otherwise (RFC 9112, 6.1).
    A target in absolute form, as of a proxy, means its path (RFC 9112, 3.2.2).
    """

    def __init__(self, app: ASGIApp, *, is_full: Callable[[], bool]) -> None:
        self._app = app
        self._is_full = is_full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        error = self._objection(Headers(scope=scope), scope["path"])
        if error is not None:
            refusal = await on_error(Request(scope), error)
            refusal.headers["connection"] = "close"
            return await refusal(scope, receive, send)
        if scope["path"].startswith(("http://", "https://")):
            scope = {**scope, "path": urlsplit(scope["path"]).path or "/"}
        return await self._app(scope, receive, send)

    def _objection(self, headers: Headers, path: str) -> ServingError | None:
        if self._is_full():
            return NotReadyError("too many connections; try again later")
        if "transfer-encoding" in headers and "content-length" in headers:
            return InvalidRequestError("found Transfer-Encoding and Content-Length, wanted one of them")
        if not path.isprintable():  # Starlette takes a path and a line feed for the path; what stands before us may not
            return InvalidRequestError("found a control character in the path")
        return None
