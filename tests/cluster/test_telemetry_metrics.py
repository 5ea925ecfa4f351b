"""What the metrics say of a snapshot and of rows; the files made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import parse_config
from cluster.control.energy_books import EnergyBooks
from cluster.snapshot import EnergyView
from cluster.statistics.faults import Fault
from cluster.telemetry import catalogue
from cluster.telemetry.catalogue import CATALOGUE, markdown_table
from cluster.telemetry.exporter import told_before
from cluster.telemetry.files import alert_rules, prometheus_config
from cluster.telemetry.grafana import dashboard
from cluster.telemetry.metric import Kind, Metric, Reading
from cluster.telemetry.ray_metrics import RayMetrics
from cluster.telemetry.readings import readings
from cluster.telemetry.row_tally import OTHER, RowTally
from cluster.telemetry.totals import Totals
from replicas.protocol import EnergyTotals
from tests.cluster import snapshots
from tests.cluster.rows import row

ROOT = Path(__file__).parent.parent.parent

Found = dict[tuple[str, tuple[str, ...]], float]


def read(**fields: object) -> Found:
    taken = readings(snapshots.snapshot(**fields), 0.9)  # type: ignore[arg-type]
    found = [((metric.name, labels), value) for metric, labels, value in taken]
    assert len(dict(found)) == len(found), "a metric and its labels are told once"
    return dict(found)


def counts(taken: list[Reading], metric: Metric) -> dict[tuple[str, ...], float]:
    return {r.labels: r.value for r in taken if r.metric is metric}


class TestCatalogue:
    def test_names_say_type_and_unit(self) -> None:
        assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
        for metric in CATALOGUE:
            assert metric.name.startswith("tiebreak_")
            assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
            assert (metric.kind is Kind.HISTOGRAM) == bool(metric.boundaries)
            assert list(metric.boundaries) == sorted(metric.boundaries)

    def test_a_snapshot_and_a_row_fill_all_of_it(self) -> None:
        tally = RowTally(tenants=5)
        tally.add(row())
        totals = EnergyTotals("model:test", 10.0, 6.0, 1.0, 3.0, 1.0, 50.0)
        energy = EnergyView(totals, ["model:test"], 50.0, 400.0, by_source=[totals])
        taken = [*readings(snapshots.snapshot(energy=energy), 0.9), *tally.take()]
        assert {reading.metric.name for reading in taken} == {m.name for m in CATALOGUE}
        for metric, labels, _ in taken:
            assert len(labels) == len(metric.labels)

    def test_the_documented_table_is_this_one(self) -> None:
        assert markdown_table() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

    def test_every_fault_is_documented(self) -> None:
        text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        assert [fault for fault in Fault if f"`{fault}`" not in text] == []


class TestReadings:
    def test_replicas_are_told_apart_and_counted_by_state(self) -> None:
        full = snapshots.replica("replica-7", 900, 1010, running=15)
        gone = snapshots.replica("replica-8", 0, 0, running=0, state="lost")
        found = read(replicas=[full, gone])
        assert found["tiebreak_replica_kv_used_blocks", ("replica-7",)] == 900
        assert found["tiebreak_replica_kv_projected_peak_blocks", ("replica-7",)] == 1010
        assert found["tiebreak_replica_kv_engine_ratio", ("replica-7",)] == 900 / 1024
        assert found["tiebreak_replica_running_requests", ("replica-8",)] == 0
        assert found["tiebreak_replicas", ("ready",)] == 1
        assert found["tiebreak_replicas", ("lost",)] == 1
        assert found["tiebreak_replicas", ("failed",)] == 0

    def test_energy_adds_up_to_the_meter(self) -> None:
        totals = EnergyTotals("model:test", 10.0, 6.0, 1.0, 3.0, 1.0)
        found = read(energy=EnergyView(totals, ["model:test"], by_source=[totals]))
        metered = sum(v for (name, _), v in found.items() if name == catalogue.ENERGY.name)
        assert metered == totals.metered_joules
        assert found["tiebreak_energy_wasted_joules_total", ("model:test",)] == 1.0

    def test_another_meter_does_not_tell_the_joules_of_the_first_again(self) -> None:
        books, totals = EnergyBooks(), Totals()

        def told() -> float:
            taken = readings(snapshots.snapshot(energy=books.view()), 0.9)
            return sum(r.value for r in totals.increments(taken) if r.metric is catalogue.ENERGY)

        books.reported("a", EnergyTotals("zeus:nvml", 100.0, 60.0, 0.0, 40.0))
        assert told() == 100.0
        books.reported("b", EnergyTotals("model:test", 5.0, 3.0, 0.0, 2.0))
        assert told() == 5.0
        books.lost("a")
        assert told() == 0.0

    def test_what_is_not_known_is_not_told(self) -> None:
        energy = EnergyView(EnergyTotals(), [])
        names = {n for n, _ in read(energy=energy, coverage=None, rank_correlation=None)}
        absent = (
            catalogue.ENERGY,
            catalogue.POWER,
            catalogue.POWER_CAP,
            catalogue.COVERAGE,
            catalogue.RANK_CORRELATION,
        )
        assert not names & {metric.name for metric in absent}


class TestRowTally:
    def test_counts_and_values_of_rows(self) -> None:
        tally = RowTally(tenants=5)
        tally.take()
        tally.add(row())
        tally.add(row(finish_reason="length", output_tokens=10))
        tally.add(row(request_class="offline", energy_joules=None, dispatched_s=None))
        taken = tally.take()
        assert counts(taken, catalogue.FINISHED) == {
            ("online", "stop"): 1,
            ("online", "length"): 1,
            ("offline", "stop"): 1,
        }
        assert counts(taken, catalogue.OUTPUT_TOKENS) == {("online",): 30, ("offline",): 20}
        assert counts(taken, catalogue.REQUEST_ENERGY) == {("online", "model:test"): 25.0}
        assert counts(taken, catalogue.REQUEST_ENERGY_TOKENS) == {("online", "model:test"): 30}
        assert [r.value for r in taken if r.metric is catalogue.QUEUE_SECONDS] == [0.5, 0.5]
        assert [r.value for r in taken if r.metric is catalogue.PER_TOKEN_SECONDS] == [
            3 / 20,
            3 / 10,
            3 / 20,
        ]
        assert tally.take() == []

    def test_counters_are_known_before_anything_is_counted(self) -> None:
        finished = counts(RowTally(tenants=0).take(), catalogue.FINISHED)
        assert finished[("online", "error")] == 0
        assert len(finished) == 8

    @given(st.lists(st.integers(0, 50), max_size=200), st.integers(0, 10))
    def test_tenants_are_bounded_and_none_is_lost(self, tenants: list[int], most: int) -> None:
        tally = RowTally(tenants=most)
        for tenant in tenants:
            tally.add(row(tenant=f"tenant-{tenant}"))
        told = counts(tally.take(), catalogue.TENANT_REQUESTS)
        assert sum(told.values()) == len(tenants)
        assert len(told.keys() - {(OTHER,)}) <= most

    def test_a_request_without_tokens_has_no_latency_per_token(self) -> None:
        tally = RowTally(tenants=1)
        tally.add(row(output_tokens=0, first_token_s=None, finish_reason="error"))
        told = {reading.metric.name for reading in tally.take()}
        assert catalogue.PER_TOKEN_SECONDS.name not in told
        assert catalogue.TTFT_SECONDS.name not in told
        assert catalogue.LATENCY_SECONDS.name in told


class TestTotals:
    @given(st.lists(st.integers(0, 100)))
    def test_increments_add_up_to_what_totals_rose_by(self, values: list[int]) -> None:
        totals = Totals()
        told = [
            reading.value
            for value in values
            for reading in totals.increments([Reading(catalogue.EVICTIONS, (), value)])
        ]
        rises = [max(0, b - a) for a, b in zip([0, *values], values, strict=False)]
        assert told == rises

    def test_joules_that_find_their_owner_are_not_told_again(self) -> None:
        totals = Totals()
        told = 0.0
        for request, unattributed in ((0, 10), (10, 0), (10, 10), (20, 0), (20, 4)):
            taken = [
                Reading(catalogue.ENERGY, ("model:test", "request"), request),
                Reading(catalogue.ENERGY, ("model:test", "unattributed"), unattributed),
            ]
            told += sum(reading.value for reading in totals.increments(taken))
        assert told == 20 + 10, "what was unattributed at most is all that can be too much"

    def test_gauges_stay_as_they_are(self) -> None:
        reading = Reading(catalogue.CLIENTS, (), 3)
        totals = Totals()
        assert totals.increments([reading]) + totals.increments([reading]) == [reading] * 2

    def test_a_restarted_controller_tells_nothing_twice(self) -> None:
        first = [
            Reading(catalogue.FAULTS, ("client_lost",), 4),
            Reading(catalogue.ENERGY, ("model:test", "idle"), 70.0),
            Reading(catalogue.EVICTIONS, (), 2),
        ]
        totals = Totals(told_before(first, {"client_lost": 3}, is_restarted=True))
        assert [r.value for r in totals.increments(first)] == [1, 0, 2]

    def test_a_first_controller_tells_all_of_it(self) -> None:
        first = [Reading(catalogue.ENERGY, ("model:test", "idle"), 70.0)]
        totals = Totals(told_before(first, {}, is_restarted=False))
        assert [r.value for r in totals.increments(first)] == [70.0]


class TestFiles:
    def names(self, text: str) -> set[str]:
        return set(re.findall(r"\bray_tiebreak_\w+", text))

    def known(self) -> set[str]:
        exported = {metric.exported for metric in CATALOGUE}
        return exported | {f"{m.exported}_bucket" for m in CATALOGUE if m.kind is Kind.HISTOGRAM}

    def test_the_dashboard_asks_for_metrics_that_exist_and_for_all_of_them(self) -> None:
        asked = {name.removesuffix("_bucket") for name in self.names(json.dumps(dashboard()))}
        assert asked == {metric.exported for metric in CATALOGUE}

    def test_panels_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard()["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken
            assert place["x"] + place["w"] <= 24
            taken |= cells

    def test_alerts_watch_metrics_that_exist(self) -> None:
        rules = yaml.safe_load(alert_rules())["groups"][0]["rules"]
        assert self.names(alert_rules()) <= self.known()
        for rule in rules:
            assert rule["annotations"].keys() == {"summary", "description"}
            assert rule["labels"]["severity"] in ("info", "warning", "critical")

    def test_a_prometheus_configuration_is_yaml(self, tmp_path: Path) -> None:
        path = tmp_path / "prometheus.yml"
        config = yaml.safe_load(prometheus_config(path, alerts=tmp_path / "a b.yml"))
        assert config["rule_files"] == [str(tmp_path / "a b.yml")]
        assert config["scrape_configs"][0]["file_sd_configs"][0]["files"]


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("metrics_interval_s", 11), ("otlp_endpoint", "localhost:4317"), ("traced_share", 2)],
    )
    def test_what_cannot_work_is_refused(self, field: str, value: object) -> None:
        with pytest.raises(ValueError, match=f"telemetry.{field}"):
            parse_config({"telemetry": {field: value}})


def test_a_reading_that_cannot_be_recorded_takes_no_other_with_it() -> None:
    bad = Reading(catalogue.FINISHED, ("online", "stop"), -1.0)  # Ray refuses it
    rest = iter([bad, Reading(catalogue.OUTPUT_TOKENS, ("online",), 5.0), bad])
    with pytest.raises(ExceptionGroup, match=r"in full: tiebreak_requests_finished_total$"):
        RayMetrics().record(rest)
    assert next(rest, None) is None, "all of them were tried"
