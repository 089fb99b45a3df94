"""Sends a span for each attempt to a collector, by OpenTelemetry's conventions for agents. Only
this package imports OpenTelemetry, and only if traces are enabled.

`wiring` calls `tracer` and registers the result as an Observer of the store. `exporter` converts a
stored attempt that has ended into a span, and sends the span in a separate thread. A span contains
no prompt, output or command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from perdure.host.extras import install_command

if TYPE_CHECKING:
    from perdure.telemetry.tracing.exporter import Tracer

ENDPOINT, BASE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"


def tracer(environ: Mapping[str, str], tell: Callable[[str], None]) -> Tracer | None:
    """Return the exporter of spans if OpenTelemetry's own variables request one; else None. If the
    request cannot be met, call `tell` with the reason and return None."""
    base = environ.get(BASE, "")
    endpoint = environ.get(ENDPOINT, "") or (f"{base.rstrip('/')}/v1/traces" if base else "")
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if (
        not endpoint
        or environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or "otlp" not in exporter.split(",")
    ):
        return None
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), SPOKEN)
    if protocol != SPOKEN:
        tell(
            f"no traces are sent: {protocol!r} is not spoken; set "
            f"OTEL_EXPORTER_OTLP_PROTOCOL={SPOKEN}"
        )
        return None
    if not find_spec("opentelemetry") or not find_spec("opentelemetry.exporter.otlp.proto.http"):
        tell(
            "no traces are sent: the library of OpenTelemetry is not installed: "
            f"{install_command('otel')}"
        )
        return None
    from perdure.telemetry.tracing.exporter import Tracer

    return Tracer(endpoint, environ, tell)
