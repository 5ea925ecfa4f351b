"""What the controller keeps of a prompt's text and of forecasts, without Ray: nothing for long."""

from __future__ import annotations

import time

from cluster.config import parse_config
from cluster.membership.member import Member
from cluster.messages import Submission
from policies.request import RequestClass
from predictor.excerpt import excerpt
from replicas.protocol import EngineInfo, Generation
from tests.cluster.running import Running

INFO = EngineInfo("m", kv_blocks=64, block_size=16, max_num_seqs=2, max_model_len=512)


def controller(queue: int = 1000) -> Running:
    config = parse_config({"model": "m", "predictor": {"queue": queue, "network": "/a/network"}})
    return Running(config.model_dump(mode="json"))


def submission(number: int, attempt: int = 1, max_tokens: int = 100) -> Submission:
    return Submission(
        generation=Generation(f"r{number}", "client", b"", attempt=attempt),
        prompt_tokens=20,
        max_tokens=max_tokens,
        request_class=RequestClass.OFFLINE,
        text=excerpt(f"{number} " * 3000),
    )


def member() -> Member:
    made = Member(0, "replica-0")
    made.info = INFO
    return made


async def test_the_text_is_passed_on_and_not_kept() -> None:
    control = controller(queue=10)
    await control.submit("client", [submission(i) for i in range(50)])
    assert len(control._state.open) == 50
    assert {control._state.open[f"r{i}"].text for i in range(50)} == {""}
    assert control._state.forecasting.remembered == 10
    questions = control._state.forecasting._questions.take(10)
    assert [q.text for q in questions] == [submission(i).text for i in range(49, 39, -1)]


async def test_cancelled_requests_leave_nothing() -> None:
    control = controller()
    await control.submit("client", [submission(i) for i in range(5)])
    await control.cancel("client", ["r0", "r1"])
    assert control._state.forecasting.remembered == 3
    await control.leave("client", ["r2", "r3", "r4"])
    assert control._state.forecasting.remembered == 0


async def test_refused_requests_leave_nothing() -> None:
    control = controller()
    control._desk.replica_ready(member())
    await control.submit("client", [submission(0, max_tokens=5000)])
    assert control._state.counters.refused == 1
    assert control._state.forecasting.remembered == 0


async def test_requests_of_a_lost_replica_leave_nothing_until_they_are_submitted_again() -> None:
    control, replica = controller(), member()
    control._desk.replica_ready(replica)
    await control.submit("client", [submission(0)])
    assert control._state.scheduler.decide(time.monotonic())
    control._desk.replica_lost(replica)
    assert control._state.forecasting.remembered == 0
    await control.submit("client", [submission(0, attempt=2)])
    assert control._state.forecasting.remembered == 1


async def test_a_dispatched_request_is_asked_for_after_those_that_wait() -> None:
    control = controller()
    control._desk.replica_ready(member())
    await control.submit("client", [submission(i) for i in range(8)])
    actions = control._state.scheduler.decide(time.monotonic())
    control._carry_out(actions)
    running = {action.request.request_id for action in actions}
    assert 0 < len(running) < 8
    order = [q.request_id for q in control._state.forecasting._questions.take(8)]
    assert set(order[-len(running) :]) == running
