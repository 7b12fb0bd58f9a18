"""OpenTelemetry tracing: continues the caller's trace through the predictor and its feature reads.

Spans are exported if ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or the one for traces) is set; all other settings are
OpenTelemetry's own environment variables. If it is not set, nothing is recorded, at the cost of a dictionary lookup.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SERVICE = "thinktwice-predictor"
NO_SPAN: AbstractContextManager[Any] = nullcontext()


class Tracing:
    """Spans of one process. ``tracer`` is None if nothing is exported."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, headers: Mapping[str, str], **attributes: Any) -> Iterator[str]:
        """A span below the caller's ``traceparent``; yields the trace id as 32 hex digits, "" if there is none."""
        if self._tracer is None:
            yield trace_id_of(headers)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(
            "predict", context=extract(dict(headers)), kind=SpanKind.SERVER, attributes=attributes
        ) as span:
            yield f"{span.get_span_context().trace_id:032x}"

    def stage(self, name: str, **attributes: Any) -> AbstractContextManager[Any]:
        """A span below the current one."""
        return NO_SPAN if self._tracer is None else self._tracer.start_as_current_span(name, attributes=attributes)


def trace_id_of(headers: Mapping[str, str]) -> str:
    """The trace id in a W3C ``traceparent``, "" if there is none or it is malformed."""
    parts = headers.get("traceparent", "").split("-")
    if len(parts) < 4 or len(parts[1]) != 32 or set(parts[1]) == {"0"}:
        return ""
    return parts[1] if all(c in "0123456789abcdef" for c in parts[1]) else ""


def open_tracing(model_version: str, arm: str, processor: SpanProcessor | None = None) -> Tracing:
    """Create tracing from the environment; ``processor`` receives the spans instead of the exporter."""
    if processor is None and not any(os.environ.get(name) for name in ENDPOINTS):
        return Tracing()
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if processor is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        processor = BatchSpanProcessor(OTLPSpanExporter())
    attributes = {"service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE), "service.version": model_version}
    provider = TracerProvider(resource=Resource.create(attributes | {"thinktwice.arm": arm}))
    provider.add_span_processor(processor)
    return Tracing(provider.get_tracer("thinktwice"))
