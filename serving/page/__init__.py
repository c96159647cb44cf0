"""The page at `/`: three files, read once from the package. Nothing in it comes from elsewhere, nothing is inline."""

from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
PAGE_PATHS: Final = tuple(_FILES)  # nothing in them is secret
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: thumbnails of what was dropped
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text of a label or a file name ever becomes markup
    )
)


def page_routes() -> list[Route]:
    """Return a route for each file of the page."""
    return [_route(path, name=name, media_type=media_type) for path, (name, media_type) in _FILES.items()]


def _route(path: str, *, name: str, media_type: str) -> Route:
    content = files(__name__).joinpath(name).read_bytes()
    headers = {"content-type": media_type, "content-security-policy": _POLICY, "cache-control": "no-cache"}

    async def serve(request: Request) -> Response:  # noqa: ARG001 -- Starlette hands it over
        return Response(content, headers=headers)

    return Route(path, serve)
