"""Traces of requests by OpenTelemetry, where the settings name an endpoint."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from edgekit.fleet.errors import InvalidError


def trace(app: FastAPI, endpoint: str) -> Callable[[], None]:
    """Send a span for each request.

    Args:
        app: whose requests.
        endpoint: of OTLP over HTTP, such as `http://localhost:4318`.

    Returns:
        Sends what is still there, and ends.

    Raises:
        InvalidError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidError(
            f"otel_endpoint = {endpoint!r}, and no {error.name}",
            expected="OpenTelemetry, to send traces",
            way_out='pip install "edgekit[otel]", or leave otel_endpoint out',
            code="no_otel",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "edgekit-fleet"}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, excluded_urls="healthz,metrics")
    return provider.shutdown
