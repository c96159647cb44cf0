"""Traces for OpenTelemetry: a span for every request, and below it queue, decode, preprocess and inference.

Configured by the standard OTEL_* variables alone, over gRPC: without an endpoint, or without the extra `otel`, nothing
of it is imported. Continues the caller's trace (W3C traceparent, or what OTEL_PROPAGATORS asks for). Pictures are never
sent.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from bundle import __version__
from serving.observability import current_request_id
from serving.stages import PictureStages

SERVICE_NAME: Final = "calotype"


class OpenTelemetry:
    """See `stages.Tracing`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("calotype", __version__)

    def join(self, headers: Mapping[str, str]) -> None:
        """Continue the caller's trace; the task that runs the request ends with it, and so does the context."""
        context.attach(propagate.extract(headers, context=context.Context()))  # not a part of what this task inherits

    @contextmanager
    def request(self, door: str, *, picture_count: int) -> Iterator["RequestSpan"]:
        """Trace a request; its pictures' stages become spans when it ends."""
        attributes: dict[str, str | int] = {
            "calotype.door": door,
            "calotype.pictures": picture_count,
            "calotype.request_id": current_request_id(),
        }
        kind = trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(
            "classify", kind=kind, attributes=attributes, record_exception=False
        ) as span:
            request = RequestSpan(self._tracer, span)
            try:
                yield request
            except asyncio.CancelledError:  # no Exception: the library would take it for an answer
                span.set_status(trace.Status(trace.StatusCode.ERROR, "cancelled, or late"))
                raise
            finally:
                request.finish()

    def close(self) -> None:
        """Send what is still held back; blocks."""
        self._provider.shutdown()


class RequestSpan:
    """See `stages.RequestTrace`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._pictures: Sequence[PictureStages] = ()

    def answered_by(self, model: str, *, version: int) -> None:
        """Note which model answers."""
        self._span.set_attributes({"calotype.model": model, "calotype.version": version})

    def watch(self, picture_count: int) -> Sequence[PictureStages] | None:
        """Return what is to be noted for each picture; None where the request was not sampled."""
        if not self._span.is_recording():
            return None
        self._pictures = [PictureStages() for _ in range(picture_count)]
        return self._pictures

    def finish(self) -> None:
        """Make spans of the stages that have ended."""
        parent = trace.set_span_in_context(self._span)
        for number, picture in enumerate(self._pictures):
            for name, start_ns, end_ns in tuple(picture.stages):
                attributes = {"calotype.picture": number}
                self._tracer.start_span(name, parent, attributes=attributes, start_time=start_ns).end(end_ns)


def start() -> OpenTelemetry:
    """Return tracing that sends to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names."""
    own = {"service.version": __version__}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        own["service.name"] = SERVICE_NAME
    provider = TracerProvider(resource=Resource.create(own))  # sampler and limits: OTEL_TRACES_SAMPLER and its like
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetry(provider)
