"""A comparison told: to machines, as tables, and as a folder with a report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.simulating.comparison import CAPACITY_SHARE, Comparison, Plan
from jobs.simulating.figures import Drawn, draw
from jobs.simulating.fleet_power import told
from jobs.simulating.html_report import html_report
from jobs.simulating.summary import RANKED_ROWS, without_nan
from jobs.simulating.tables import Table, comparison_tables, number

RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """What was compared, and what came of it.

    Attributes:
        plan: What was asked.
        arrivals: How the requests arrive, in words.
        step_time: How long steps take, in words.
        comparison: What came of it.
    """

    plan: Plan
    arrivals: str
    step_time: str
    comparison: Comparison

    def as_dict(self) -> dict[str, Any]:
        """For machines: `setup` in words, `capacities` by seed, `results` by seed, load and arm."""
        results: dict[str, Any] = without_nan(
            {
                "setup": self.facts(),
                "capacities": [
                    {"seed": c.seed, "requests": c.requests, "requests_per_s": c.rate_per_s}
                    for c in self.comparison.capacities
                ],
                "results": [r.summary.as_dict() for r in self.comparison.results],
            }
        )
        return results

    def tables(self) -> list[Table]:
        """For people."""
        return comparison_tables([r.summary for r in self.comparison.results])

    def facts(self) -> dict[str, str]:
        """What was simulated and how, by name."""
        plan, fleet, workload = self.plan, self.plan.fleet, self.plan.workload
        limits, power = fleet.limits, fleet.power
        facts = {
            "requests": f"{workload.requests:,}; lengths: {workload.lengths}, cut at "
            f"{workload.max_tokens:,} tokens; arrivals: {self.arrivals}",
            "forecasts": f"{plan.forecasts[plan.forecast]}; interval: {workload.interval}; an arm "
            f"NAME@FORECAST has its own. Ranks are correlated on up to {RANKED_ROWS:,} requests "
            "drawn evenly",
            "replicas": f"{fleet.replicas:,} with {limits.kv_tokens:,} KV tokens in blocks of "
            f"{limits.block_size}, {limits.max_num_seqs:,} requests at once, "
            f"{limits.max_num_batched_tokens:,} tokens a step; longest request "
            f"{fleet.max_model_len or limits.kv_tokens:,} tokens",
            "evictions": "an evicted request keeps its tokens and computes their KV again"
            if fleet.on_eviction == "recompute"
            else "an evicted request restarts from nothing",
            "step time": self.step_time,
            "energy": "not accounted for: no power model" if power is None else told(power),
            "capacity": self._capacity(),
            "load": ", ".join(str(load) for load in plan.loads),
            "seeds": ", ".join(str(seed) for seed in plan.seeds),
        }
        if workload.offline is not None:
            facts["offline"] = f"{100 * workload.offline.share:g} % of the requests"
        if self.comparison.notes:
            facts["data"] = "; ".join(self.comparison.notes)
        return facts

    def write(self, folder: Path) -> None:
        """Write `results.json` and `report.html`."""
        text = json.dumps(self.as_dict(), indent=2)
        (folder / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")
        drawn = [Drawn(r.summary, r.curves) for r in self.comparison.results if r.curves]
        page = html_report(
            "Tiebreak: policies compared",
            self.facts(),
            self.tables(),
            draw(drawn, self.plan.fleet.limits.block_size),
        )
        (folder / REPORT_FILE).write_text(page, encoding="utf-8")

    def _capacity(self) -> str:
        capacities = self.comparison.capacities
        if not capacities:
            return "not measured: all requests arrive at once"
        rates = ", ".join(f"{number(c.rate_per_s)}" for c in capacities)
        return (
            f"{rates} requests/s: the same requests ({capacities[0].requests:,}) all at once, "
            "first come first served, admitted by their true lengths, until "
            f"{CAPACITY_SHARE:.0%} of them have finished"
        )
