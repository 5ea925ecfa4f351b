"""What requests tell the projected-memory scheduler, and what it tells of them."""

from __future__ import annotations

import contextlib
import math
import socket
import tempfile
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="needs vLLM")
from policies.forecast import Forecast
from replicas.protocol import Stalled
from replicas.stall_reports import DATAGRAM_BYTES, SOCKET_VARIABLE, decode
from tests.replicas.gated_engines import POLICIES, complete, engine, workloads
from tests.replicas.vllm_scheduler import Job, Sizes

MALFORMED = [
    None,
    {},
    {"other": 1},
    *(
        {"tiebreak": terms}
        for terms in (
            None,
            7,
            "text",
            "{",
            [],
            {},
            {"mu": 3.0},
            {"mu": "three", "sigma": 0.5},
            {"mu": math.nan, "sigma": 0.5},
            {"mu": 3.0, "sigma": math.inf},
            {"mu": 3.0, "sigma": -1.0},
            {"mu": 1e6, "sigma": 1e6},
            {"mu": -1e6, "sigma": 0.0},
            {"mu": 3.0, "sigma": 0.5, "lower": -4, "upper": 9},
            {"mu": 3.0, "sigma": 0.5, "lower": 9, "upper": 4},
            {"mu": 3.0, "sigma": 0.5, "key": math.nan},
            {"mu": 3.0, "sigma": 0.5, "generated_tokens": -1},
            {"mu": 3.0, "sigma": 0.5, "generated_tokens": (1 << 64) - 1},
            {"mu": 3.0, "sigma": 0.5, "lower": (1 << 64) - 1},
            {"mu": 3.0, "sigma": 0.5, "evictions": -1},
            {"mu": 3.0, "sigma": 0.5, "evictions": (1 << 64) - 1, "precedence": -(1 << 63)},
            {"mu": 3.0, "sigma": 0.5, "unknown": 1},
        )
    ),
]


@given(workload=workloads())
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_all_that_wait_are_reported_with_their_tokens(workload: tuple[Sizes, list[Job]]) -> None:
    sizes, jobs = workload
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,  # a socket's path must be short
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener,
        pytest.MonkeyPatch.context() as environment,
    ):
        listener.bind(f"{folder}/stalled")
        environment.setenv(SOCKET_VARIABLE, f"{folder}/stalled")
        gated = engine(sizes)
        for job in jobs:
            gated.add(job)
        latest: dict[str, Stalled] = {}
        evicted: Counter[str] = Counter({job.request_id: job.evictions for job in jobs})
        while gated.scheduler.has_unfinished_requests():
            before = {i: len(tokens) for i, tokens in gated.outputs.items()}
            step = gated.step()
            evicted.update(step.evicted)
            with contextlib.suppress(BlockingIOError):
                latest = decode(listener.recv(DATAGRAM_BYTES))
            assert latest == {i: Stalled(before[i], evicted[i]) for i in step.waiting}
            with pytest.raises(BlockingIOError):
                listener.recv(DATAGRAM_BYTES)


@given(workload=workloads(), behind=st.integers(0, 1))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_several_answers_to_one_prompt(workload: tuple[Sizes, list[Job]], behind: int) -> None:
    """vLLM makes such requests of one another: other ids, the same sampling parameters."""
    sizes, jobs = workload
    gated = engine(sizes, behind=behind)
    children = [
        replace(job, request_id=f"{n}_{job.request_id}", parent_id=job.request_id)
        for job in jobs[:3]
        for n in range(3)
    ]
    gated.run(children)
    for child in children:
        complete(child, gated)


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_without_terms_or_with_wrong_ones_are_served(policy: str) -> None:
    gated = engine(Sizes(kv_blocks=20, block_size=4), policy)
    jobs = [
        Job(f"r{i}", 6, 9, 20, extra_args=extra_args, arrival_s=float(i))
        for i, extra_args in enumerate(MALFORMED)
    ]
    gated.run(jobs)
    for job in jobs:
        complete(job, gated)


def test_a_cap_beyond_all_numbers_is_served() -> None:
    """vLLM lets it through: the length of its context ends the answer."""
    sizes = Sizes(kv_blocks=10, block_size=4, max_model_len=40)
    for behind in (0, 1):
        gated = engine(sizes, behind=behind)
        jobs = [
            Job("known", 8, 32, (1 << 64) - 1, Forecast(3.0, 0.5, 9, 90)),
            Job("unknown", 8, 32, (1 << 64) - 1, extra_args=None),
        ]
        gated.run(jobs)
        for job in jobs:
            complete(job, gated)


def test_wrong_terms_change_no_order() -> None:
    """They count as none: first come, first served, whatever the key beside the mistake."""
    gated = engine(Sizes(kv_blocks=5, block_size=4, max_num_seqs=1), "fcfs")
    wrong = {"tiebreak": {"mu": math.nan, "sigma": 0.5, "key": -100.0}}
    gated.run(
        [
            Job("first", 6, 9, extra_args=None, arrival_s=0.0),
            Job("second", 6, 9, extra_args=None, arrival_s=1.0),
            Job("third", 6, 9, extra_args=wrong, arrival_s=2.0),
        ]
    )
    assert [i for step in gated.steps for i in step.started] == ["first", "second", "third"]


def test_vllms_priority_goes_before_the_key() -> None:
    gated = engine(Sizes(kv_blocks=5, block_size=4, max_num_seqs=1, order="priority"))
    for index, priority in enumerate([2, 0, 1]):
        gated.add(
            Job(f"p{priority}", 6, 9, extra_args=None, arrival_s=float(index), priority=priority)
        )
    gated.run()
    assert [i for step in gated.steps for i in step.started] == ["p0", "p1", "p2"]
