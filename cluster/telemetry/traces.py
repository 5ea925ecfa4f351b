"""Spans to an OpenTelemetry collector, one tree per request.

Imports the library: whoever has no use for it does not import this module.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterator, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from cluster.config import ClusterConfig
from cluster.config_sections import TelemetryConfig
from cluster.messages import Submission
from cluster.snapshot import Event
from cluster.statistics.finished_row import FinishedRow
from cluster.telemetry.request_spans import Span, attributes, phases
from cluster.telemetry.trace_context import TraceContext, trace_context

_QUEUE = 1 << 16
"""Spans that wait for a collector; beyond it the oldest are dropped."""

_EXPORT_TIMEOUT_S = 5
"""How long one batch may take to be exported, its repetitions included."""

_CLOSE_S = 3.0
"""How long the last spans may take to leave when the cluster is shut down."""


class Traces:
    """Exports the spans of requests that end.

    A batch processor's thread does the exporting: a collector that is slow or dead costs spans,
    and no request notices.

    Args:
        config: Of the cluster, with an endpoint.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._model = config.model
        self._share = config.telemetry.traced_share
        version = importlib.metadata.version("tiebreak")
        resource = {"service.name": "tiebreak", "service.version": version}
        self._resource = Resource.create(resource)
        self._scope = InstrumentationScope("tiebreak", version)
        self._processor = BatchSpanProcessor(_exporter(config.telemetry), max_queue_size=_QUEUE)

    def ended(self, row: FinishedRow, events: Sequence[Event], submission: Submission) -> None:
        """A request has ended (see `Statistics.on_row`)."""
        context = trace_context(submission, self._share)
        if context.is_sampled:
            self._processor.on_end(self._request(row, events, context))
            for span in self._phases(row, events, context):
                self._processor.on_end(span)

    def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _request(
        self, row: FinishedRow, events: Sequence[Event], context: TraceContext
    ) -> ReadableSpan:
        name = f"text_completion {self._model}"
        whole = Span(name, 0.0, row.finished_s, attributes(row, self._model))
        parent = None
        if context.parent_id is not None:
            parent = _span_context(context, context.parent_id, is_remote=True)
        return self._span(
            whole,
            row,
            _span_context(context, context.span_id),
            parent,
            kind=SpanKind.SERVER,
            events=[
                SpanEvent(event.what, {"detail": event.detail}, _unix_ns(row, event.at_s))
                for event in events
            ],
            status=StatusCode.ERROR if row.finish_reason == "error" else StatusCode.UNSET,
        )

    def _phases(
        self, row: FinishedRow, events: Sequence[Event], context: TraceContext
    ) -> Iterator[ReadableSpan]:
        parent = _span_context(context, context.span_id)
        for number, phase in enumerate(phases(row, events)):
            own = _span_context(context, context.child_id(f"{number}/{phase.name}"))
            yield self._span(phase, row, own, parent)

    def _span(
        self,
        span: Span,
        row: FinishedRow,
        own: SpanContext,
        parent: SpanContext | None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        events: Sequence[SpanEvent] = (),
        status: StatusCode = StatusCode.UNSET,
    ) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=own,
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=events,
            kind=kind,
            instrumentation_scope=self._scope,
            status=Status(status),
            start_time=_unix_ns(row, span.start_s),
            end_time=_unix_ns(row, span.end_s),
        )


def _unix_ns(row: FinishedRow, at_s: float) -> int:
    return round((row.arrival_unix_s + at_s) * 1e9)


def _span_context(context: TraceContext, span_id: int, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(context.trace_id, span_id, is_remote, TraceFlags(TraceFlags.SAMPLED))


def _exporter(telemetry: TelemetryConfig) -> SpanExporter:
    endpoint, timeout_s = telemetry.otlp_endpoint, _EXPORT_TIMEOUT_S
    if telemetry.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as OverGrpc,
        )

        return OverGrpc(endpoint=endpoint, timeout=timeout_s)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp(endpoint=endpoint, timeout=timeout_s)
