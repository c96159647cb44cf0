"""Who is let in over HTTP: the tokens of gRPC, asked for before a body is read. Health can stay open, for probes."""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ServingError
from serving.http_door import on_error
from serving.observability import name_caller
from serving.tokens import Gate

HEALTH_PATHS = ("/healthz", "/readyz")


class TokenDoor:
    """Around the HTTP application: asks the gate for every path but the open ones."""

    def __init__(self, app: ASGIApp, gate: Gate, *, open_paths: tuple[str, ...]) -> None:
        self._app = app
        self._gate = gate
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] not in self._open:
            shown = Headers(scope=scope).getlist("authorization")
            try:
                name_caller(self._gate.check(shown[0] if len(shown) == 1 else None))
            except ServingError as error:
                refusal = await on_error(Request(scope), error)
                return await refusal(scope, receive, send)
        return await self._app(scope, receive, send)
