"""A collector on loopback that accepts OTLP over HTTP, as OpenTelemetry's own does, and keeps the
data."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """The collector. `refuse`: number of requests that it first answers with 503."""

    def __init__(self, refuse: int = 0) -> None:
        self.raw = b""
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.refused = 0
        self.got = threading.Event()
        collector = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                wanted = (
                    self.path == "/v1/traces"
                    and self.headers["content-type"] == "application/x-protobuf"
                )
                refused = collector.refused < refuse
                collector.refused += refused
                if wanted and not refused:
                    collector.take(body)
                self.send_response(503 if refused else 200 if wanted else 400)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def take(self, body: bytes) -> None:
        self.raw += body
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(each.resource.attributes))
            self.spans += [span for scope in each.scope_spans for span in scope.spans]
        self.got.set()

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    """Return the values of attributes, by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
