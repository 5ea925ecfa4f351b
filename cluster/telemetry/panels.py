"""The dashboard's panels: what each shows, by which queries."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.telemetry import catalogue as metrics
from cluster.telemetry.promql import RATE, Query, most, quantiles, rate, ratio, series, total


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        unit: Grafana's name of its unit.
        queries: Its curves.
        kind: Grafana's type: `timeseries`, `stat` or `table`.
        meaning: What to look for.
        least: Lower end of its axis.
        most: Upper end of its axis; None: Grafana chooses.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    meaning: str = ""
    least: float = 0
    most: float | None = None


OVERVIEW = (
    Panel(
        "What runs",
        "short",
        (Query(most(metrics.INFO, "policy", "model"), "{{policy}} · {{model}}"),),
        kind="stat",
    ),
    Panel("Replicas", "short", (Query(most(metrics.REPLICAS, "state"), "{{state}}"),), kind="stat"),
    Panel("Clients", "short", (Query(most(metrics.CLIENTS), "clients"),), kind="stat"),
    Panel("Controller up", "s", (Query(most(metrics.UPTIME), "up"),), kind="stat"),
)

REQUESTS = (
    Panel(
        "Waiting and running",
        "short",
        (
            Query(most(metrics.QUEUE_REQUESTS, "class"), "{{class}} waiting"),
            Query(most(metrics.RUNNING, "class"), "{{class}} running"),
        ),
    ),
    Panel(
        "Predicted tokens waiting",
        "short",
        (Query(most(metrics.QUEUE_TOKENS, "class"), "{{class}}"),),
    ),
    Panel(
        "Time to empty the queue",
        "s",
        (Query(most(metrics.QUEUE_DRAIN, "class"), "{{class}}"),),
        meaning="Refused clients are told to come back after this long.",
    ),
    Panel(
        "Admitted, refused and ended",
        "reqps",
        (
            Query(rate(metrics.ADMISSIONS), "admitted"),
            Query(rate(metrics.REFUSED), "refused"),
            Query(rate(metrics.FINISHED, "class", "reason"), "{{class}}: {{reason}}"),
        ),
    ),
    Panel(
        "Output tokens",
        "short",
        (Query(rate(metrics.OUTPUT_TOKENS, "class"), "{{class}} per second"),),
        meaning="Of requests that ended; the replicas' own rates are below.",
    ),
    Panel(
        "Output tokens by tenant",
        "short",
        (Query(rate(metrics.TENANT_TOKENS, "tenant"), "{{tenant}} per second"),),
    ),
    Panel(
        "Requests ended by tenant",
        "reqps",
        (Query(rate(metrics.TENANT_REQUESTS, "tenant"), "{{tenant}}"),),
    ),
    Panel(
        "Evictions and recalls",
        "short",
        (
            Query(f"sum(increase({series(metrics.EVICTIONS)}{RATE}))", "evictions"),
            Query(f"sum(increase({series(metrics.RECALLS)}{RATE}))", "recalls"),
        ),
    ),
)

LATENCY = (
    Panel("Time in the queue", "s", quantiles(metrics.QUEUE_SECONDS)),
    Panel("Time to the first token", "s", quantiles(metrics.TTFT_SECONDS)),
    Panel("Latency", "s", quantiles(metrics.LATENCY_SECONDS)),
    Panel("Latency per output token", "s", quantiles(metrics.PER_TOKEN_SECONDS)),
)

MEMORY = (
    Panel(
        "KV memory in use",
        "percentunit",
        (
            Query(
                f"{most(metrics.REPLICA_KV_USED, 'replica')} / "
                f"({most(metrics.REPLICA_KV_BLOCKS, 'replica')} > 0)",
                "{{replica}} by the ledger",
            ),
            Query(most(metrics.REPLICA_KV_ENGINE, "replica"), "{{replica}} by its engine"),
        ),
        meaning="The ledger, which decisions rest on, counts all that was sent to a replica, even "
        "while it waits inside the engine; the engine counts the blocks it has given out, those of "
        "a shared prefix once.",
    ),
    Panel(
        "KV memory at the projected peak",
        "percentunit",
        (
            Query(
                f"{most(metrics.REPLICA_KV_PEAK, 'replica')} / "
                f"({most(metrics.REPLICA_KV_BLOCKS, 'replica')} > 0)",
                "{{replica}}",
            ),
        ),
        meaning="Above 1 the engine will evict unless answers turn out shorter than forecast.",
    ),
    Panel(
        "Requests at each replica",
        "short",
        (
            Query(most(metrics.REPLICA_RUNNING, "replica"), "{{replica}}"),
            Query(most(metrics.REPLICA_STALLED, "replica"), "{{replica}} not started or evicted"),
            Query(most(metrics.REPLICA_SLOTS, "replica"), "{{replica}} slots"),
        ),
    ),
    Panel(
        "Output tokens by replica",
        "short",
        (Query(most(metrics.REPLICA_TOKENS, "replica"), "{{replica}} per second"),),
    ),
    Panel(
        "Age of the ledgers",
        "s",
        (Query(most(metrics.REPLICA_LEDGER_AGE, "replica"), "{{replica}}"),),
        meaning="Decisions rest on reports of this age.",
    ),
    Panel(
        "Slow replicas",
        "short",
        (Query(total(metrics.REPLICA_SLOW), "work goes around"),),
    ),
    Panel(
        "Tokens computed again, over all tokens of requests that ended",
        "percentunit",
        (
            Query(
                ratio(
                    rate(metrics.RECOMPUTED),
                    f"({rate(metrics.PROMPT_TOKENS)} + {rate(metrics.OUTPUT_TOKENS)})",
                ),
                "computed again",
            ),
        ),
    ),
)

FORECASTS = (
    Panel(
        "Answers inside their forecast interval",
        "percentunit",
        (
            Query(most(metrics.COVERAGE), "covered"),
            Query(most(metrics.COVERAGE_TARGET), "wanted"),
        ),
        most=1,
    ),
    Panel(
        "Rank correlation of forecasts and lengths",
        "short",
        (Query(most(metrics.RANK_CORRELATION), "Kendall's tau"),),
        meaning="1: the order of dispatch is as if lengths were known; 0: as if drawn by lot.",
        least=-1,
        most=1,
    ),
    Panel(
        "Forecasts by source",
        "reqps",
        (Query(rate(metrics.FORECASTS, "source"), "{{source}}"),),
    ),
    Panel(
        "Networks out of favour",
        "short",
        (
            Query(most(metrics.FALLBACK), "now"),
            Query(total(metrics.FALLBACKS), "times so far"),
        ),
    ),
)

ENERGY = (
    Panel(
        "Power",
        "watt",
        (
            Query(most(metrics.POWER, "source"), "{{source}}"),
            Query(most(metrics.POWER_CAP), "cap of offline work"),
        ),
    ),
    Panel(
        "Power by use",
        "watt",
        (
            Query(rate(metrics.ENERGY, "use", "source"), "{{use}} ({{source}})"),
            Query(rate(metrics.ENERGY_WASTED, "source"), "computing again ({{source}})"),
        ),
    ),
    Panel(
        "Energy per output token",
        "joule",
        (
            Query(
                f"{rate(metrics.REQUEST_ENERGY, 'class')} / "
                f"({rate(metrics.REQUEST_ENERGY_TOKENS, 'class')} > 0)",
                "{{class}}",
            ),
        ),
        meaning="Of requests that ended on replicas with a meter, by class; idle energy is apart.",
    ),
)

FAULTS = (
    Panel(
        "Faults in an hour",
        "short",
        (
            # Not increase(), which does not see the first value of a restarted controller's series.
            Query(
                f"{total(metrics.FAULTS, 'event')} - "
                f"min_over_time(({total(metrics.FAULTS, 'event')})[1h:])",
                "{{event}}",
            ),
        ),
    ),
    Panel(
        "Faults so far",
        "short",
        (Query(total(metrics.FAULTS, "event"), "{{event}}"),),
        kind="table",
    ),
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Cluster", OVERVIEW),
    ("Requests", REQUESTS),
    ("Latency", LATENCY),
    ("Replicas and memory", MEMORY),
    ("Forecasts", FORECASTS),
    ("Energy", ENERGY),
    ("Faults", FAULTS),
)
"""The dashboard's rows, from top to bottom."""
