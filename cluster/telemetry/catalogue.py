"""Every metric of ours, and the table of them that the documentation shows."""

from __future__ import annotations

from cluster.telemetry.metric import Metric, counter, gauge, histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_PER_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10)

# The queue.
QUEUE_REQUESTS = gauge("tiebreak_queue_requests", "Requests that wait.", "class")
QUEUE_TOKENS = gauge(
    "tiebreak_queue_predicted_tokens", "Output tokens predicted for those that wait.", "class"
)
QUEUE_DRAIN = gauge(
    "tiebreak_queue_drain_seconds", "When all that waits now should have left the queue.", "class"
)
RUNNING = gauge("tiebreak_running_requests", "Requests dispatched and not ended.", "class")

# What happened to requests.
ADMISSIONS = counter("tiebreak_admissions_total", "Requests sent to a replica, each time.")
FINISHED = counter(
    "tiebreak_requests_finished_total", "Requests that ended, by how.", "class", "reason"
)
REFUSED = counter("tiebreak_requests_refused_total", "Requests refused, each time.")
EVICTIONS = counter("tiebreak_evictions_total", "Times an engine evicted a request.")
RECALLS = counter(
    "tiebreak_recalls_total", "Times a waiting request was taken back for another replica."
)
RECOMPUTED = counter("tiebreak_recomputed_tokens_total", "Tokens whose KV was computed again.")
PROMPT_TOKENS = counter(
    "tiebreak_prompt_tokens_total", "Prompt tokens of requests that ended.", "class"
)
OUTPUT_TOKENS = counter(
    "tiebreak_output_tokens_total", "Output tokens of requests that ended.", "class"
)
TENANT_REQUESTS = counter(
    "tiebreak_tenant_requests_finished_total",
    "Requests that ended, of the first telemetry.metrics_tenants tenants and of all others.",
    "tenant",
)
TENANT_TOKENS = counter("tiebreak_tenant_output_tokens_total", "Their output tokens.", "tenant")

# Latency.
QUEUE_SECONDS = histogram(
    "tiebreak_request_queue_seconds",
    "From arrival until a replica was first chosen.",
    _SECONDS,
    "class",
)
TTFT_SECONDS = histogram(
    "tiebreak_request_ttft_seconds", "From arrival to the first token.", _SECONDS, "class"
)
LATENCY_SECONDS = histogram(
    "tiebreak_request_latency_seconds", "From arrival to the end.", _SECONDS, "class"
)
PER_TOKEN_SECONDS = histogram(
    "tiebreak_request_per_token_seconds",
    "Latency over output tokens, of requests that have any.",
    _PER_TOKEN_SECONDS,
    "class",
)

# Replicas.
REPLICAS = gauge("tiebreak_replicas", "Replicas by state, as in `tiebreak status`.", "state")
REPLICA_KV_BLOCKS = gauge("tiebreak_replica_kv_blocks", "KV-cache blocks that it has.", "replica")
REPLICA_KV_USED = gauge(
    "tiebreak_replica_kv_used_blocks",
    "Blocks that the requests there need now by the controller's ledger, evicted ones included.",
    "replica",
)
REPLICA_KV_PEAK = gauge(
    "tiebreak_replica_kv_projected_peak_blocks",
    "Most blocks in use over the projected steps, if nothing else is sent there.",
    "replica",
)
REPLICA_KV_ENGINE = gauge(
    "tiebreak_replica_kv_engine_ratio",
    "Share of its blocks in use as its engine says, 0 to 1.",
    "replica",
)
REPLICA_RUNNING = gauge(
    "tiebreak_replica_running_requests", "Requests that the controller has there.", "replica"
)
REPLICA_STALLED = gauge(
    "tiebreak_replica_stalled_requests",
    "Of these, those that its engine has not started or has evicted.",
    "replica",
)
REPLICA_SLOTS = gauge("tiebreak_replica_slots", "Requests that it can decode at once.", "replica")
REPLICA_TOKENS = gauge(
    "tiebreak_replica_output_tokens_per_second", "Output tokens per second, lately.", "replica"
)
REPLICA_LEDGER_AGE = gauge(
    "tiebreak_replica_ledger_age_seconds", "Age of its last report.", "replica"
)
REPLICA_SLOW = gauge(
    "tiebreak_replica_slow", "1 while work goes around it because it is slow, else 0.", "replica"
)

# Forecasts.
COVERAGE = gauge(
    "tiebreak_forecast_coverage_ratio", "Share of recent answers inside their forecast interval."
)
COVERAGE_TARGET = gauge(
    "tiebreak_forecast_coverage_target_ratio", "What it should be (predictor.coverage)."
)
RANK_CORRELATION = gauge(
    "tiebreak_forecast_rank_correlation",
    "Kendall's tau of recent forecasts and lengths, -1 to 1.",
)
FALLBACK = gauge(
    "tiebreak_predictor_fallback",
    "Predictors whose network is not trusted now, so that the prior forecasts; none without one.",
)
FALLBACKS = counter("tiebreak_predictor_fallbacks_total", "Times that a network lost its trust.")
FORECASTS = counter(
    "tiebreak_forecasts_total", "Forecasts given, from a `network` or the `prior`.", "source"
)

# Faults.
FAULTS = counter(
    "tiebreak_faults_total",
    "What went wrong: the watchdog's, the replicas', the clients'.",
    "event",
)

# Energy.
ENERGY = counter(
    "tiebreak_energy_joules_total",
    "Energy metered, by use: `request`, `idle` or `unattributed`.",
    "source",
    "use",
)
ENERGY_WASTED = counter(
    "tiebreak_energy_wasted_joules_total",
    "The part of use `request` that computed tokens again.",
    "source",
)
REQUEST_ENERGY = counter(
    "tiebreak_request_energy_joules_total",
    "Energy attributed to requests that ended.",
    "class",
    "source",
)
REQUEST_ENERGY_TOKENS = counter(
    "tiebreak_request_energy_tokens_total",
    "Output tokens of the requests whose energy is known.",
    "class",
    "source",
)
POWER = gauge("tiebreak_power_watts", "Power now.", "source")
POWER_CAP = gauge(
    "tiebreak_power_cap_watts", "What offline work is paced to; absent without a cap."
)

# The controller.
CLIENTS = gauge("tiebreak_clients", "Clients that are connected.")
UPTIME = gauge("tiebreak_controller_uptime_seconds", "Since the controller's process started.")
INFO = gauge("tiebreak_info", "Always 1; its labels say what runs.", "policy", "model")

CATALOGUE: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
"""All of them, in the order of this file."""

SOURCES = ("network", "prior")
"""Values of the label `source` of `FORECASTS`."""


def markdown_table() -> str:
    """The catalogue as a Markdown table."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{metric.exported}` | {metric.kind} | "
        f"{', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in CATALOGUE
    ]
    return "\n".join(lines) + "\n"
