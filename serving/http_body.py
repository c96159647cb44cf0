"""Read the pictures of one HTTP request, within limits and in memory only: a raw body, or the files of a form.

A request is refused by its Content-Length before anything is read, and where it has none, as soon as too much has
come. All requests together may hold `budget_bytes`. Knows no models.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from serving.errors import (
    BodyTooLargeError,
    CallerGoneError,
    DeadlineExceededError,
    InvalidRequestError,
    NotReadyError,
    QueueFullError,
)

FIELD: Final = "images"
_ARRIVAL_S: Final = 60  # a body that takes longer is a stalled caller: it would hold its share of the budget
_FULL_RETRY_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class BodyLimits:
    """How much one request may bring, and all together may hold."""

    max_bytes: int
    max_images: int
    budget_bytes: int


class Body:
    """The pictures of a request, as encoded bytes; leaving it gives its share of the budget back."""

    def __init__(self, reader: "BodyReader") -> None:
        self._reader = reader
        self._held_bytes = 0
        self.images: tuple[bytes, ...] = ()

    def hold(self, size_bytes: int) -> None:
        """Take so much more of the budget. Raises BodyTooLargeError, QueueFullError."""
        self._reader.take(size_bytes, held_bytes=self._held_bytes)
        self._held_bytes += size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.give_back(self._held_bytes)
        self._held_bytes = 0


class BodyReader:
    """Reads bodies; one for a server, since it keeps the common budget."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._free_bytes = limits.budget_bytes
        self._arriving: set[asyncio.Timeout] = set()
        self._is_closing = False
        self.idle = asyncio.Event()  # set while no body is on its way
        self.idle.set()

    def give_up(self) -> None:
        """Refuse what is still arriving, and whatever comes from now on: the server is about to end."""
        self._is_closing = True
        for arriving in self._arriving:
            with suppress(RuntimeError):  # it has just run out by itself
                arriving.reschedule(0.0)  # in the loop's time: long past

    async def read(self, request: Request, *, within_s: float | None = None) -> Body:
        """Return the request's pictures, that must have come within so many seconds.

        Raises InvalidRequestError, QueueFullError, DeadlineExceededError, NotReadyError or CallerGoneError.
        """
        body = Body(self)
        most_s = _ARRIVAL_S if within_s is None else min(_ARRIVAL_S, within_s)
        try:
            async with asyncio.timeout(0.0 if self._is_closing else most_s) as arriving:
                self._arriving.add(arriving)
                self.idle.clear()
                body.images = await self._images(request, body)
        except BaseException as error:
            body.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, TimeoutError) and self._is_closing:
                raise NotReadyError("the server is shutting down; send it to another one") from error
            if isinstance(error, TimeoutError):
                raise DeadlineExceededError(f"the body did not arrive within {most_s:g} s; send it faster") from error
            if isinstance(error, ClientDisconnect):
                raise CallerGoneError("the caller went away while sending") from error
            raise
        finally:
            self._arriving.discard(arriving)
            if not self._arriving:
                self.idle.set()
        return body

    def take(self, size_bytes: int, *, held_bytes: int) -> None:
        """Take from the budget for a request that already holds so much."""
        self._check(held_bytes + size_bytes)
        if size_bytes > self._free_bytes:
            raise QueueFullError("too many bytes are under way; try again later", retry_after_s=_FULL_RETRY_S)
        self._free_bytes -= size_bytes

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._limits.max_bytes:
            raise BodyTooLargeError(f"the body has more than {self._limits.max_bytes:,} bytes; send less at once")

    def give_back(self, size_bytes: int) -> None:
        """Return to the budget what a request held."""
        self._free_bytes += size_bytes

    async def _images(self, request: Request, body: Body) -> tuple[bytes, ...]:
        self._check(int(request.headers.get("content-length", "0")))  # h11 has checked that it is a number
        packed = request.headers.get("content-encoding", "")
        if packed.strip().lower() not in ("", "identity"):
            raise InvalidRequestError(f"content-encoding: found {packed[:32]!r}, wanted the pictures as they are")
        chunks = _held(request, body)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
            return await self._files(request, chunks)
        raw = b"".join([chunk async for chunk in chunks])
        return (raw,) if raw else ()

    async def _files(self, request: Request, chunks: AsyncGenerator[bytes]) -> tuple[bytes, ...]:
        most = self._limits.max_images
        parser = _InMemoryParser(request.headers, chunks, max_files=most, max_fields=most)
        try:
            form = await parser.parse()
        except (MultiPartException, UnicodeError) as error:  # the latter of a codec that the caller names
            found = error.message.rstrip(".") if isinstance(error, MultiPartException) else "its charset does not fit"
            raise InvalidRequestError(f"form: {found}; wanted at most {most} files named {FIELD!r}") from error
        try:
            parts = form.multi_items()
            for name, part in parts:
                if name != FIELD or not isinstance(part, UploadFile):
                    kind = "file" if isinstance(part, UploadFile) else "text"
                    raise InvalidRequestError(
                        f"form: found a {kind} {name[:32]!r}, wanted only files named {FIELD!r}, as of "
                        f"`curl -F {FIELD}=@picture.jpg`"
                    )
            return tuple([part.file.read() for _, part in parts if isinstance(part, UploadFile)])
        finally:
            await form.close()


class _InMemoryParser(MultiPartParser):
    """Starlette's, which else writes files beyond 1 MB to /tmp: the budget bounds them, and a container has no /tmp."""

    spool_max_size = 0  # SpooledTemporaryFile never rolls over to disk at 0
    _is_whole = False

    def on_end(self) -> None:
        self._is_whole = True

    async def parse(self) -> FormData:
        """Read the form; refuse one that ends too early, of which Starlette leaves out the last part."""
        form = await super().parse()
        if not self._is_whole:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("It ends before its last boundary.")
        return form


async def _held(request: Request, body: Body) -> AsyncGenerator[bytes]:
    """Pass the body's chunks on, holding budget for each as it comes: what is only announced takes no memory."""
    async for chunk in request.stream():
        body.hold(len(chunk))
        yield chunk
