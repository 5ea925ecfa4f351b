"""Single instances of the unit-step model: the published vectors through the whole simulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.simulating.instance import (
    INSTANCE_POLICIES,
    InstanceOptions,
    InstanceOutcome,
    run_instance,
)
from jobs.simulating.instance_file import parse_instance
from policies import policy
from tests.jobs.simulating.factories import (
    GENERATED,
    V1,
    V2,
    V3,
    error_of,
    request_dict,
    run_command,
    write_instance,
)
from tests.policies.unit_step import Job
from tests.policies.unit_step import run as run_model

VARIANTS = [(key, over) for key in ("stored", "realtime") for over in ("alive", "double")]


def outcome(value: dict[str, Any], name: str, *words: str, **more: Any) -> InstanceOutcome:
    return run_instance(parse_instance(value), InstanceOptions(name, *words, **more))


def test_v1() -> None:
    assert outcome(V1, "h_sf").total_latency == 8
    a_max = outcome(V1, "a_max")
    assert (a_max.total_latency, a_max.completions) == (18, [4, 3, 5, 6])
    assert all(outcome(V1, "a_min", *variant).total_latency == 8 for variant in VARIANTS)


def test_v2() -> None:
    h_sf = outcome(V2, "h_sf")
    assert (h_sf.total_latency, h_sf.completions) == (18, [7, 2, 2, 5, 2])
    a_max = outcome(V2, "a_max")
    assert (a_max.total_latency, a_max.completions) == (39, [5, 5, 7, 10, 12])
    assert outcome(V2, "a_min", "stored", "alive") == InstanceOutcome(
        total_latency=21,
        completions=[8, 2, 2, 5, 4],
        evictions=1,
        wasted_tokens=3,
        makespan=8,
        peak_tokens=9,
    )
    realtime = outcome(V2, "a_min")
    assert (realtime.total_latency, realtime.completions) == (20, [5, 2, 2, 7, 4])
    assert realtime.wasted_tokens == 1
    double = outcome(V2, "a_min", "stored", "double")
    assert (double.total_latency, double.completions) == (25, [10, 2, 2, 5, 6])


def test_v3() -> None:
    assert outcome(V3, "h_sf").total_latency == 11
    a_max = outcome(V3, "a_max")
    assert (a_max.total_latency, a_max.completions) == (25, [3, 3, 4, 4, 5, 6])
    assert all(outcome(V3, "a_min", *variant).total_latency == 11 for variant in VARIANTS)


@pytest.mark.parametrize(
    ("name", "variant", "figures"),
    [
        ("h_sf", (), (22980, 0, 0, 670)),
        ("a_max", (), (32892, 0, 0, 759)),
        ("a_min", ("stored", "alive"), (30278, 95, 2420, 693)),
        ("a_min", ("realtime", "alive"), (24953, 91, 969, 631)),
        ("a_min", ("stored", "double"), (28866, 68, 2100, 658)),
    ],
)
def test_generated_workload(
    name: str, variant: tuple[str, ...], figures: tuple[int, int, int, int]
) -> None:
    """Total latency, evictions, tokens wasted, makespan (arXiv:2508.14544's model)."""
    made = outcome(GENERATED, name, *variant)
    assert (made.total_latency, made.evictions, made.wasted_tokens, made.makespan) == figures
    assert made.peak_tokens <= 1500


@st.composite
def instances(draw: st.DrawFn) -> dict[str, Any]:
    requests = []
    for _ in range(draw(st.integers(1, 8))):
        output = draw(st.integers(1, 8))
        requests.append(
            request_dict(
                draw(st.integers(0, 5)),
                output,
                draw(st.integers(1, output)),
                draw(st.integers(output, 12)),
                arrival=draw(st.integers(0, 6)),
            )
        )
    requests.sort(key=lambda r: r["arrival"])
    least = max(r["prompt_tokens"] + r["output_tokens"] for r in requests)
    return {"memory_tokens": draw(st.integers(least, least + 20)), "requests": requests}


@pytest.mark.parametrize("name", INSTANCE_POLICIES)
@settings(max_examples=40, deadline=None)
@given(value=instances())
def test_memory_holds_and_every_request_completes(name: str, value: dict[str, Any]) -> None:
    """I1 and I2: whatever the lengths, all complete, none early, within the memory."""
    made = outcome(value, name)
    assert made.peak_tokens <= value["memory_tokens"]
    assert made.makespan == max(made.completions)
    waits = [
        done - r["arrival"] - r["output_tokens"]
        for done, r in zip(made.completions, value["requests"], strict=True)
    ]
    assert min(waits) >= 0
    useful = sum(r["output_tokens"] for r in value["requests"])
    assert made.total_latency == sum(waits) + useful


@pytest.mark.parametrize("name", ["h_sf", "a_max", "a_min"])
@settings(max_examples=40, deadline=None)
@given(value=instances())
def test_equals_the_model_written_from_the_paper(name: str, value: dict[str, Any]) -> None:
    jobs = [
        Job(r["prompt_tokens"], r["output_tokens"], r["lower"], r["upper"], r["arrival"])
        for r in value["requests"]
    ]
    model = run_model(jobs, value["memory_tokens"], policy(name))
    made = outcome(value, name)
    assert made.completions == model.completions
    assert (made.evictions, made.wasted_tokens) == (model.evictions, model.wasted_tokens)


def test_mc_sf_goes_by_the_prediction() -> None:
    """With true predictions it is H-SF, with the upper bounds it is A_max's order."""
    told = {
        "memory_tokens": V2["memory_tokens"],
        "requests": [r | {"predicted": r["output_tokens"]} for r in V2["requests"]],
    }
    assert outcome(told, "mc_sf") == outcome(V2, "h_sf")
    assert outcome(V2, "mc_sf").total_latency == outcome(V2, "a_max").total_latency


def test_promote_l_kills_who_outlives_the_lower_bound() -> None:
    """Two lengths, 1 and 4: the long one is found out after a step and starts again behind."""
    value = {
        "memory_tokens": 5,
        "requests": [request_dict(0, output, 1, 4) for output in (4, 1, 1, 1, 1, 1)],
    }
    made = outcome(value, "promote_l")
    assert made.completions == [5, 1, 1, 1, 1, 2]
    assert (made.evictions, made.wasted_tokens) == (1, 1)


def test_fcfs_takes_requests_as_they_come() -> None:
    value = {
        "memory_tokens": 4,
        "requests": [request_dict(0, 4, 1, 4), request_dict(0, 1, 1, 4, arrival=1)],
    }
    assert outcome(value, "fcfs").completions == [4, 2]


def test_random_ties_are_drawn_from_the_seed_and_told_in_the_order_of_the_file() -> None:
    value = {"memory_tokens": 2, "requests": [request_dict(1, 1, 1, 1) for _ in range(6)]}
    orders = [
        outcome(value, "a_min", ties="random", seed=seed).completions for seed in (0, 0, 1, 2, 3)
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in orders)
    assert outcome(value, "a_min").completions == [1, 2, 3, 4, 5, 6]


def test_requests_may_stand_in_any_order_of_arrival() -> None:
    late, early = request_dict(1, 2, 2, 2, arrival=3), request_dict(1, 2, 2, 2, arrival=0)
    made = outcome({"memory_tokens": 9, "requests": [late, early]}, "a_max")
    assert (made.completions, made.total_latency) == ([5, 2], 4)


def test_nothing_to_do_is_all_zeros() -> None:
    made = outcome({"memory_tokens": 1, "requests": []}, "a_min")
    assert made == InstanceOutcome(0, [], 0, 0, 0, 0)


def test_the_command_prints_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("simulate", "--instance", write_instance(tmp_path, V2), "--step", "unit", "--json")
    assert run_command(*words, "--policy", "a_min", "--eviction-key", "stored") == 0
    assert json.loads(capsys.readouterr().out) == {
        "total_latency": 21,
        "completions": [8, 2, 2, 5, 4],
        "evictions": 1,
        "wasted_tokens": 3,
        "makespan": 8,
        "peak_tokens": 9,
    }


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("simulate", "--instance", write_instance(tmp_path, V2), "--step", "unit")
    assert run_command(*words, "--policy", "a_max") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["39", "0", "0", "12", "9"] in rows
    assert ["4", "12"] in rows


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{", "is not JSON"),
        ([1], "the instance is [1], must be an object"),
        ({"memory_tokens": 9}, "the field 'requests' is missing"),
        ({"memory_tokens": 0, "requests": []}, "memory_tokens is 0"),
        ({"memory_tokens": 9, "requests": {}}, "requests is {}, must be a list"),
        ({"memory_tokens": 9, "request": []}, "unknown field 'request'; known are"),
        ({"memory_token": 9, "requests": []}, "did you mean 'memory_tokens'?"),
    ],
)
def test_a_file_that_is_no_instance(
    value: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_instance(tmp_path, value)
    words = ("simulate", "--instance", file, "--step", "unit", "--policy", "a_min")
    assert told in error_of(capsys, *words)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt_tokens": -1}, "request 1: prompt_tokens is -1, must be in 0.."),
        ({"output_tokens": 0}, "request 1: output_tokens is 0, must be in 1.."),
        ({"output_tokens": 2.5}, "request 1: output_tokens is 2.5, must be an integer"),
        ({"output_tokens": True}, "request 1: output_tokens is true, must be an integer"),
        ({"output_tokens": "2"}, 'request 1: output_tokens is "2", must be an integer'),
        ({"lower": 5, "upper": 4}, "request 1: lower is 5, above upper (4)"),
        ({"output_tokens": 1}, "request 1: output_tokens is 1, outside lower..upper (2..5)"),
        ({"prompt_tokens": 8}, "request 1: prompt_tokens + output_tokens is 10, above"),
        ({"arrival": -1}, "request 1: arrival is -1"),
        ({"arrival": 0.5}, "request 1: arrival is 0.5, must be an integer"),
        ({"upper": 10**12}, "request 1: upper is 1000000000000, must be in 1..2147483647"),
        ({"outputtokens": 2}, "request 1: unknown field 'outputtokens'"),
        ({"outputtokens": 2}, "did you mean 'output_tokens'?"),
    ],
)
def test_a_request_that_cannot_be_is_named(
    change: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = request_dict(1, 2, 2, 5)
    file = write_instance(tmp_path, {"memory_tokens": 9, "requests": [good, good | change]})
    words = ("simulate", "--instance", file, "--step", "unit", "--policy", "a_min")
    assert told in error_of(capsys, *words)


def test_a_missing_field_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_instance(tmp_path, {"memory_tokens": 9, "requests": [{"prompt_tokens": 1}]})
    words = ("simulate", "--instance", file, "--step", "unit", "--policy", "a_min")
    assert "request 0: the field 'output_tokens' is missing" in error_of(capsys, *words)


@pytest.mark.parametrize("name", ["h_sf", "mc_sf", "fcfs"])
def test_wrong_bounds_do_not_matter_to_who_does_not_read_them(name: str) -> None:
    value = {"memory_tokens": 9, "requests": [request_dict(1, 7, 1, 2)]}
    assert outcome(value, name).completions == [7]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--policy", "a_mon"), "did you mean 'a_min'?"),
        (("--policy", "a_min", "--policy", "a_max"), "give exactly one"),
        ((), "give exactly one"),
        (("--policy", "fcfs", "--eviction-key", "stored"), "only for a_min, mc_sf"),
        (("--policy", "h_sf", "--overdue", "double"), "only for a_max, a_min, promote_l"),
        (("--policy", "a_min", "--overdue", "zero"), "known are alive, double"),
        (("--policy", "a_min", "--load", "2"), "--load describes a workload"),
        (("--policy", "a_min", "--requests", "5"), "--requests describes a workload"),
        (("--policy", "a_min", "--ties", "random", "--seed", "-1"), "--seed is -1"),
        (("--policy", "a_min", "--step", "linear"), "needs --step unit"),
    ],
)
def test_options_that_an_instance_refuses(
    words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_instance(tmp_path, V2)
    first = ("simulate", "--instance", file, "--step", "unit")
    assert told in error_of(capsys, *first, *words)


def test_defaults_may_be_spelt_out_for_any_policy(tmp_path: Path) -> None:
    file = write_instance(tmp_path, V2)
    words = ("--eviction-key", "realtime", "--overdue", "alive", "--ties", "id", "--json")
    for name in INSTANCE_POLICIES:
        run = ("simulate", "--instance", file, "--step", "unit", "--policy", name, *words)
        assert run_command(*run) == 0


def test_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("simulate", "--instance", "/no/such/file", "--step", "unit", "--policy", "a_min")
    assert "cannot read the instance '/no/such/file'" in error_of(capsys, *words)
