"""What the metrics say of the requests that ended, gathered between two updates."""

from __future__ import annotations

from collections import defaultdict, deque

from cluster.statistics.finished_row import FinishedRow
from cluster.telemetry import catalogue as metrics
from cluster.telemetry.metric import Metric, Reading

OTHER = "other"
"""The label of all tenants that have none of their own."""

MOST_VALUES = 400_000
"""Values of histograms that wait to be taken; older ones are left out, should nobody take them."""

_CLASSES = ("online", "offline")
_REASONS = ("stop", "length", "abort", "error")


class RowTally:
    """Counts rows by label, and keeps the values of histograms until somebody takes them.

    Args:
        tenants: How many get a label of their own: those that are seen first.
    """

    def __init__(self, tenants: int) -> None:
        self._most_tenants = tenants
        self._tenants: set[str] = set()
        self._counts: defaultdict[tuple[Metric, tuple[str, ...]], float] = defaultdict(float)
        self._values: deque[Reading] = deque(maxlen=MOST_VALUES)
        for request_class in _CLASSES:
            self._counts[metrics.PROMPT_TOKENS, (request_class,)] = 0
            self._counts[metrics.OUTPUT_TOKENS, (request_class,)] = 0
            for reason in _REASONS:
                self._counts[metrics.FINISHED, (request_class, reason)] = 0

    def add(self, row: FinishedRow) -> None:
        """A request has ended."""
        own, tenant = (row.request_class,), (self._tenant(row.tenant),)
        counts = self._counts
        counts[metrics.FINISHED, (row.request_class, row.finish_reason)] += 1
        counts[metrics.PROMPT_TOKENS, own] += row.prompt_tokens
        counts[metrics.OUTPUT_TOKENS, own] += row.output_tokens
        counts[metrics.TENANT_REQUESTS, tenant] += 1
        counts[metrics.TENANT_TOKENS, tenant] += row.output_tokens
        if row.energy_joules is not None:
            metered = row.request_class, row.energy_source
            counts[metrics.REQUEST_ENERGY, metered] += row.energy_joules
            counts[metrics.REQUEST_ENERGY_TOKENS, metered] += row.output_tokens
        if row.dispatched_s is not None:
            self._values.append(Reading(metrics.QUEUE_SECONDS, own, row.dispatched_s))
        if row.first_token_s is not None:
            self._values.append(Reading(metrics.TTFT_SECONDS, own, row.first_token_s))
        self._values.append(Reading(metrics.LATENCY_SECONDS, own, row.finished_s))
        if row.output_tokens:
            per_token_s = row.finished_s / row.output_tokens
            self._values.append(Reading(metrics.PER_TOKEN_SECONDS, own, per_token_s))

    def take(self) -> list[Reading]:
        """What came since the last call: increments of counters, values of histograms.

        A counter appears in the first answer after it is known, with 0 if nothing was counted.
        """
        taken = [Reading(metric, labels, value) for (metric, labels), value in self._counts.items()]
        taken += self._values
        self._counts.clear()
        self._values.clear()
        return taken

    def _tenant(self, name: str) -> str:
        if name not in self._tenants:
            if len(self._tenants) >= self._most_tenants:
                return OTHER
            self._tenants.add(name)
        return name
