"""The HTTP door: pictures in, JSON out; health, metrics and the page beside it. Starlette's side, without a socket.

Statuses are those of `errors.STATUS`, translated; every error that is raised here is JSON. No path in a request reaches
the file system: the page is read once, from the package. Knows no grpc.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bundle.errors import CalotypeError, ImageError
from serving.classifier import ServedModel
from serving.dispatcher import Answers, Dispatcher
from serving.errors import BodyTooLargeError, CallerGoneError, TryLaterError, attempt, status_name
from serving.http_body import BodyReader
from serving.http_question import Question
from serving.metrics import Metrics
from serving.page import page_routes
from serving.shelves import Entry
from serving.steps import Verdict
from serving.waking import OneThread

HTTP_STATUS: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,  # nginx's; nobody hears it
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_NO_STORE: Final = {"cache-control": "no-store"}
Outcome = TypeVar("Outcome")


class HttpDoor:
    """The endpoints. `is_ready` says whether the server is SERVING; it is asked at every request."""

    def __init__(
        self, dispatcher: Dispatcher, *, metrics: Metrics, bodies: BodyReader, is_ready: Callable[[], bool]
    ) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._bodies = bodies
        self._is_ready = is_ready
        self._reading = OneThread()

    def app(self) -> Starlette:
        """Return the ASGI application; `observability.Envelope` goes around it."""
        app = Starlette(
            routes=[
                Route("/healthz", self._alive),
                Route("/readyz", self._ready),
                Route("/metrics", self._exposition),
                Route("/v1/models", self._models),
                Route("/v1/classify", self._classify, methods=["POST"]),
                Route("/v1/models/{model}:classify", self._classify, methods=["POST"]),
                *page_routes(),
            ],
            exception_handlers={CalotypeError: on_error, HTTPException: _on_http_error, Exception: on_error},
        )
        app.router.redirect_slashes = False  # else /metrics/ answers with a URL made of the Host header
        return app

    async def _alive(self, request: Request) -> Response:  # noqa: ARG002 -- Starlette hands it over
        return JSONResponse({"status": "alive"}, headers=_NO_STORE)

    async def _ready(self, request: Request) -> Response:  # noqa: ARG002 -- as above
        ready = self._is_ready()
        return JSONResponse(
            {"status": "SERVING" if ready else "NOT_SERVING"}, status_code=200 if ready else 503, headers=_NO_STORE
        )

    async def _exposition(self, request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # prometheus_client 0.26 compares versions that are not plain numbers
            encode, content_type = choose_encoder("")
        # A thousand classes are some ms of text; one at a time leaves the threads to others.
        text = await self._reading.run(encode, self._metrics.exposed)
        return Response(text, headers={"content-type": content_type, **_NO_STORE})

    async def _models(self, request: Request) -> Response:  # noqa: ARG002 -- as above
        catalogue = self._dispatcher.catalogue
        default = attempt(catalogue.entry)  # an error where a request must name its model
        models = [
            {**_model_record(entry, answers=catalogue.answers(entry)), "default": entry is default}
            for entry in catalogue.entries()
        ]
        return JSONResponse({"models": models}, headers=_NO_STORE)

    async def _classify(self, request: Request) -> Response:
        started = time.perf_counter()
        async with self._admitted(request) as (question, images):
            waited_s = time.perf_counter() - started
            answering = self._dispatcher.classify(
                images,
                door="http",
                model=question.model,
                version=question.version,
                time_left_s=None if question.timeout_ms is None else question.timeout_ms / 1000 - waited_s,
            )
            answers = await _unless_gone(request, answering)
        took_ms = 1000 * (time.perf_counter() - started)
        return JSONResponse(
            _answer_record(answers, question), headers={"server-timing": f"total;dur={took_ms:.1f}", **_NO_STORE}
        )

    @asynccontextmanager
    async def _admitted(self, request: Request) -> AsyncIterator[tuple[Question, tuple[bytes, ...]]]:
        """Read a request whole; the body counts as wait of the deadline, and is held until the answer is there."""
        with self._dispatcher.refusals(door="http"):
            question = Question.parse(request.query_params, model=request.path_params.get("model", ""))
            timeout_s = None if question.timeout_ms is None else question.timeout_ms / 1000
            body = await self._bodies.read(request, within_s=timeout_s)
        with body:
            yield question, body.images


async def _unless_gone(request: Request, answering: Coroutine[None, None, Outcome]) -> Outcome:
    """Await an answer; cancel it when the caller closes the connection. Raises CallerGoneError then."""
    answer = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(request.receive())  # after the whole body, the only message is http.disconnect
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise CallerGoneError("the caller went away")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


def _answer_record(answers: Answers, question: Question) -> dict[str, object]:
    contract = answers.model.contract
    return {
        "results": [_result_record(outcome, answers.model, question=question) for outcome in answers.outcomes],
        "model": contract.name,
        "version": str(contract.version),
    }


def _result_record(outcome: Verdict | ImageError, model: ServedModel, *, question: Question) -> dict[str, object]:
    if isinstance(outcome, ImageError):
        return {"error": {"code": outcome.code, "message": str(outcome)}}
    ranked = model.rank(outcome.scores, top_k=question.top_k, min_score=question.min_score)
    predictions = [{"index": one.index, "label": one.label, "score": one.score} for one in ranked]
    return {"predictions": predictions, "unknown": outcome.unknown}


def _model_record(entry: Entry, *, answers: bool) -> dict[str, object]:
    record: dict[str, object] = {"name": entry.name, "version": str(entry.version), "state": entry.state}
    record["answers"] = answers  # requests that name no version
    if entry.reason:
        record["reason"] = entry.reason
    if entry.served is not None:
        spec = entry.served.contract.preprocess
        record |= {
            "labels": list(entry.served.contract.labels),
            "preprocess": {
                "resize_px": spec.resize_px,
                "crop_px": spec.crop_px,
                "interpolation": spec.interpolation,
                "decode_rule": spec.decode_rule,
            },
            "provider": entry.served.provider,
            "precision": entry.served.precision,
            "digest": entry.served.digest,
            "unknown_below": entry.served.contract.unknown_below,
        }
    return record


async def on_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 -- as above
    """Return the JSON of an error of `errors.STATUS`; "internal error" for any other."""
    status = status_name(error)
    code, headers = HTTP_STATUS[status], dict(_NO_STORE)
    if isinstance(error, BodyTooLargeError):
        code = 413  # the rest of the body is read and dropped, for a while: closed at once, the answer would be lost
    if isinstance(error, TryLaterError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if code == 503:
        headers["retry-after"] = "1"
    if code == 401:
        headers["www-authenticate"] = "Bearer"
    text = "internal error" if status == "INTERNAL" else str(error)
    return _error_response(code, status=status, message=text, headers=headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    headers = {**_NO_STORE, **(getattr(error, "headers", None) or {})}  # Allow, at 405
    if code == 405:
        text = f"{request.method[:16]} is not answered here; wanted {headers.get('Allow', 'another method')}"
        return _error_response(code, status="UNIMPLEMENTED", message=text, headers=headers)
    text = "nothing here; POST pictures to /v1/classify or /v1/models/NAME:classify, GET /v1/models lists the names"
    return _error_response(code, status="NOT_FOUND", message=text, headers=headers)


def _error_response(code: int, *, status: str, message: str, headers: dict[str, str]) -> Response:
    record = {"error": {"code": code, "status": status, "message": message}}
    return Response(json.dumps(record), status_code=code, media_type="application/json", headers=headers)
