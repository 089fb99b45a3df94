"""A span for each attempt, by OpenTelemetry's conventions for agents, sent to a collector.
OpenTelemetry has this one room, imported late.

`wiring` asks `tracer` whether traces are wanted, and makes what it gets an Observer of the store.
`spans` makes an attempt that has ended, as the store has it, a span (no prompt, no output, no
command is in one); `exporter` brings spans to the collector, beside the work.
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
    """What sends spans, where OpenTelemetry's own variables ask for it; None where they do not,
    and, with a sentence to `tell`, where it cannot be done."""
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
