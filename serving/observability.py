"""Give every request an id, at both doors: the caller's x-request-id or a new one, in every log line and in the answer.

`Envelope` goes around the HTTP application, `rpcs.Rpcs` before the rpcs. What is logged of a request stands in
`dispatcher`; pictures never are.
"""

import random
import re
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, get_contextvars, unbind_contextvars

from serving.stages import Tracing

HEADER: Final = "x-request-id"
_GOOD_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")  # nothing that could forge a log line
_NUMBERS: Final = random.Random()  # noqa: S311 -- names, no secrets; our own: who seeds the module's would repeat them
_SECURITY_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # the page sets a wider one
}

log = structlog.get_logger(__name__)


def begin_request(given: str) -> str:
    """Name the request that the current task answers: the caller's id where it is usable, else 16 random hex digits."""
    identity = given if _GOOD_ID.fullmatch(given) else f"{_NUMBERS.getrandbits(64):016x}"
    unbind_contextvars("caller")  # of a request before it on one connection of HTTP, whose task began this one's
    bind_contextvars(request_id=identity)
    return identity


def name_caller(token_name: str) -> None:
    """Name who asks, by the name of the token, in what is logged of the request that the current task answers."""
    bind_contextvars(caller=token_name)


def current_request_id() -> str:
    """Return the id of the request that the current task answers; empty outside of one."""
    identity: str = get_contextvars().get("request_id", "")
    return identity


class Envelope:
    """Around an ASGI application: the id, the security headers, and no exception beyond this point."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing | None = None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        identity = begin_request(headers.get(HEADER, ""))  # the first one, as at the other door
        if self._tracing:
            self._tracing.join(dict(headers))

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
