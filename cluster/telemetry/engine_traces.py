"""vLLM's own spans, which belong under ours: how its engines are told where to send them."""

from __future__ import annotations

from cluster.config_sections import TelemetryConfig


def engine_arguments(telemetry: TelemetryConfig) -> dict[str, str]:
    """Further `vllm.AsyncEngineArgs` of every replica."""
    if telemetry.otlp_endpoint is None:
        return {}
    return {"otlp_traces_endpoint": telemetry.otlp_endpoint}


def engine_environment(telemetry: TelemetryConfig, replica_id: str) -> dict[str, str]:
    """Environment variables of a replica's process: vLLM has no arguments for these."""
    if telemetry.otlp_endpoint is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": telemetry.otlp_protocol,
        "OTEL_SERVICE_NAME": "vllm",
        "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={replica_id}",
    }
