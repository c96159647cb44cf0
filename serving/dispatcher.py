"""Where every door's requests meet: check the limits, find the model, hand over the pictures, await the answers.

Counts what is under way, so that a shutdown can wait for it, and logs one line a request: at debug, or as a warning
where something is wrong. Knows neither grpc nor HTTP nor onnxruntime.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from bundle.errors import ImageError
from serving.catalogue import Catalogue
from serving.classifier import ServedModel
from serving.errors import DeadlineExceededError, InvalidRequestError, NotReadyError, QueueFullError, status_name
from serving.metrics import Door, Metrics
from serving.shadow import Shadow
from serving.stages import RequestTrace, Tracing
from serving.steps import Payload, Verdict
from serving.waking import all_done

log = structlog.get_logger(__name__)
_CLOCK_S: Final = 0.01  # by which the library's clock may be before ours
# Too much at once is no fault and tells itself in the metrics: a line each would cost most when there is least time.
_EXPECTED: Final = ("OK", "CANCELLED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of one request's pictures, in their order, and the model that answered."""

    model: ServedModel
    outcomes: tuple[Verdict | ImageError, ...]


@dataclass
class _Course:
    """What is known of a request under way: who was asked, once that is found, and what came of its pictures."""

    served: ServedModel | None = None
    deadline: float | None = None  # of time.monotonic
    outcomes: tuple[Verdict | ImageError, ...] = ()

    def is_late(self) -> bool:
        """Say whether the deadline has passed, by the clock of who ended it."""
        return self.deadline is not None and self.deadline <= time.monotonic() + _CLOCK_S


class Dispatcher:
    """One for all doors of a server. `idle` is set while no request is being answered."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        max_images_per_request: int,
        metrics: Metrics,
        tracing: Tracing | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self.catalogue = catalogue
        self._max_images = max_images_per_request
        self._metrics = metrics
        metrics.expect_requests()
        self._tracing = tracing
        self._shadow = shadow
        self._active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def classify(
        self,
        images: Sequence[Payload],
        *,
        door: Door,
        model: str = "",
        version: str = "",
        time_left_s: float | None = None,
        all_or_none: bool = False,
    ) -> Answers:
        """Run encoded pictures, or uint8 (crop, crop, 3) ones, and return a Verdict or an ImageError for each.

        An empty model means the only or default one, an empty version the one that answers. Raises the errors of
        `errors.STATUS`; with `all_or_none` also for the first picture that cannot be read. When the call is cancelled,
        its pictures leave the queue.
        """
        picture_count = len(images)
        traced = self._tracing.request(door, picture_count=picture_count) if self._tracing else nullcontext()
        with self._counted(door, picture_count=picture_count) as course, traced as trace:
            self._check(images)
            course.deadline = None if time_left_s is None else time.monotonic() + time_left_s
            served, futures = self._submit(images, model, version=version, course=course, trace=trace)
            await all_done(futures, deadline=course.deadline)
            course.outcomes = tuple([_outcome(future) for future in futures])
            if all_or_none:
                _check_read(course.outcomes)
            answers = Answers(model=served, outcomes=course.outcomes)
            if self._shadow is not None and not version:  # a request that names its version is no candidate's business
                offer = partial(self._shadow.offer, images, answers.outcomes, answering=served)
                asyncio.get_running_loop().call_soon(offer)  # when the answer is on its way
            return answers

    def _submit(
        self,
        images: Sequence[Payload],
        model: str,
        *,
        version: str,
        course: _Course,
        trace: RequestTrace | None,
    ) -> tuple[ServedModel, list[Future[Verdict]]]:
        served = course.served = self.catalogue.find(model, version)
        try:
            return served, _admitted(served, images, deadline=course.deadline, trace=trace)
        except NotReadyError:  # a swap came between the two lines, from the thread that watches the folder
            served = course.served = self.catalogue.find(model, version)
            return served, _admitted(served, images, deadline=course.deadline, trace=trace)

    def check_room(self, *, door: Door, time_left_s: float | None = None) -> None:
        """Raise QueueFullError or DeadlineExceededError, and count it, where a request would be refused in any case.

        So that under overload most requests are refused unread. Tells only where a single model is served: elsewhere a
        request must be read to know whose queue it is for. A request that names an older version is refused too: what
        is overloaded are the cores, which it would need as well.
        """
        served = self.catalogue.only()
        if served is None:
            return
        try:
            served.check_room(deadline=None if time_left_s is None else time.monotonic() + time_left_s)
        except (QueueFullError, DeadlineExceededError) as error:
            self.count_refusal(error, door=door, model=served.contract.name)
            raise

    @contextmanager
    def refusals(self, *, door: Door) -> Iterator[None]:
        """Count as refused a request that its door cannot read."""
        try:
            yield
        except Exception as error:  # whatever it was, it is counted; the door answers it
            self.count_refusal(error, door=door)
            raise

    def count_refusal(self, error: BaseException, *, door: Door, model: str = "") -> None:
        """Count a request that a door refused by itself, before there was anything to classify."""
        status = status_name(error)
        self._metrics.requests.labels(door, model, status).inc()
        _log(status, reason=str(error), door=door, model=model)

    @contextmanager
    def _counted(self, door: Door, *, picture_count: int) -> Iterator[_Course]:
        """Count a request by its outcome; the body tells the model once it is known to exist."""
        course = _Course()
        started, status, reason = time.perf_counter(), "OK", ""
        self._active += 1
        self.idle.clear()
        try:
            yield course
        except BaseException as error:
            status, reason = status_name(error), str(error)
            if status == "CANCELLED" and course.is_late():  # the library ends a late call before we do
                status = "DEADLINE_EXCEEDED"
            raise
        finally:
            self._active -= 1
            if not self._active:
                self.idle.set()
            served, seconds = course.served, time.perf_counter() - started
            name = served.contract.name if served else ""
            if served:
                served.note_request(course.outcomes, seconds=seconds)
            self._metrics.requests.labels(door, name, status).inc()
            if status == "OK":  # refusals take microseconds: the more of them, the faster it would look
                self._metrics.request_seconds.labels(door, name).observe(seconds)
            _log(status, reason=reason, door=door, model=name, pictures=picture_count, ms=round(1000 * seconds, 1))

    def _check(self, images: Sequence[Payload]) -> None:
        if not images:
            raise InvalidRequestError("images: found none, wanted at least one")
        if len(images) > self._max_images:
            raise InvalidRequestError(
                f"images: found {len(images)}, wanted at most {self._max_images}; send several requests"
            )


def _log(status: str, *, reason: str, **facts: str | float) -> None:
    """Log one request by how it ended."""
    if status in _EXPECTED:
        log.debug("request", status=status, **facts)
    else:
        log.warning("request", status=status, reason=reason, **facts)


def _admitted(
    served: ServedModel, images: Sequence[Payload], *, deadline: float | None, trace: RequestTrace | None
) -> list[Future[Verdict]]:
    if trace is None:
        return served.submit(images, deadline=deadline)
    trace.answered_by(served.contract.name, version=served.contract.version)
    return served.submit(images, deadline=deadline, stages=trace.watch(len(images)))


def _outcome(future: Future[Verdict]) -> Verdict | ImageError:
    """Return what came of one picture; raises what is not its own error."""
    error = future.exception()
    if isinstance(error, ImageError):
        return error
    return future.result()


def _check_read(outcomes: Sequence[Verdict | ImageError]) -> None:
    """Raise InvalidRequestError for the first picture that could not be read."""
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError):
            raise InvalidRequestError(f"images[{place}]: {outcome.code}: {outcome}")
