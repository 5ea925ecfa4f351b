"""Energy of `tiebreak simulate`: the power model, the comparison, and what is said of both."""

from __future__ import annotations

import json

import pytest

from cluster.config import ConfigError
from jobs.simulating.fleet_power import power_of
from replicas.silicon_tables import Deployment
from tests.jobs.simulating.factories import error_of, run_command

DECLARED = json.dumps(
    {"idle_w": 50.0, "max_w": 300.0, "peak_flops_per_s": 1e14, "flops_per_token": 2e9}
)
SMALL = ("simulate", "--requests", "60", "--kv-tokens", "6000", "--arrivals", "at-once")


def results(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, object]]:
    """Summaries by policy."""
    assert run_command(*SMALL, "--json", *words) == 0
    report = json.loads(capsys.readouterr().out)
    return {r["policy"]: r for r in report["results"]} | {"setup": report["setup"]}


def test_policies_are_compared_on_the_same_requests(capsys: pytest.CaptureFixture[str]) -> None:
    by_policy = results(capsys, "--policy", "fcfs,h_sf", "--power", DECLARED)
    assert by_policy["setup"]["energy"].startswith("model:declared: modelled, not measured: 50 W")
    for name in ("fcfs", "h_sf"):
        run = by_policy[name]
        energy = run["energy"]
        assert energy["source"] == "model:declared"
        assert energy["per_request_joules"] == pytest.approx(energy["request_joules"] / 60)
        idle = 50.0 * run["makespan_s"]
        assert energy["metered_joules"] == pytest.approx(energy["request_joules"] + idle)
        assert energy["idle_share"] == pytest.approx(idle / energy["metered_joules"])
        tokens = run["tokens_per_s"] * run["makespan_s"]
        assert energy["per_token_joules"] == pytest.approx(energy["request_joules"] / tokens)
    assert by_policy["h_sf"]["energy"]["wasted_share"] == 0
    assert by_policy["fcfs"]["energy"]["wasted_share"] > 0


def test_the_source_stands_over_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(*SMALL, "--policy", "fcfs", "--power", DECLARED) == 0
    assert "Energy (model:declared), as they arrive" in capsys.readouterr().out
    assert run_command(*SMALL, "--policy", "fcfs") == 0
    plain = capsys.readouterr().out
    assert "Energy (" not in plain
    assert "energy: not accounted for" in plain


@pytest.mark.parametrize(
    ("power", "words"),
    [
        ("h100_smx", "--power: no power figures of a GPU named 'h100_smx': did you mean"),
        ("h100_sxm", "lacks flops_per_token"),
        ("{", "--power '{' is neither a GPU's name nor JSON"),
        ('{"idle_w": 5}', "lacks max_w, peak_flops_per_s"),
        ('{"watts": 5}', "watts"),
    ],
)
def test_a_power_model_that_cannot_be_had_is_refused(
    capsys: pytest.CaptureFixture[str], power: str, words: str
) -> None:
    assert words in error_of(capsys, *SMALL, "--power", power)


def test_a_gpu_whose_kernels_were_measured_has_its_power_model() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `simulation`")
    llama = Deployment("H100", "meta-llama/Meta-Llama-3.1-8B", 2)
    device = power_of(None, llama)
    assert device is not None
    assert device.source == "model:h100_sxm"
    assert device.power.max_w == 2 * 700.0
    assert device.flops_per_token == pytest.approx(2 * 7.5e9, rel=0.01)
    assert power_of("none", llama) is None
    assert power_of(None, Deployment("l40s", "meta-llama/Meta-Llama-3.1-8B")) is None
    assert power_of(None, None) is None
    with pytest.raises(ConfigError, match="--power"):
        power_of("abacus", llama)
