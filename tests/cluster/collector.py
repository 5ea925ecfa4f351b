"""An OpenTelemetry collector that keeps the spans it is sent over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """Where it listens, and what has come."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def wait(self, count: int, within_s: float = 60.0) -> list[Span]:
        """The spans, once there are so many."""
        for _ in range(int(within_s / 0.05)):
            if len(self.spans) >= count:
                return self.spans
            time.sleep(0.05)
        raise AssertionError(f"{len(self.spans)} of {count} spans came: {self.spans}")


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """One that listens on localhost."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = attributes(resource.resource)
                kept.services.add(str(told["service.name"]))
                for scope in resource.scope_spans:
                    kept.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    kept.endpoint = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


def attributes(told: Any) -> dict[str, object]:
    """The attributes of a span, an event or a resource."""
    values = {}
    for item in told.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        values[item.key] = (
            [v.string_value for v in value.values] if kind == "array_value" else value
        )
    return values
