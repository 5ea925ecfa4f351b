"""The bench of the controller's memory plays requests to their end."""

from __future__ import annotations

from cluster.config import parse_config
from cluster.statistics.latency_groups import SINCE_START
from jobs.bench_memory import PlayedController, requests_of


async def test_played_requests_end_and_leave_their_rows_alone() -> None:
    config = parse_config({"statistics": {"kept": 50, "tenants": 5}})
    controller = PlayedController(config.model_dump(mode="json"))
    controller.join()
    lengths = []
    for first in (0, 200):
        submissions, tokens = requests_of(first, 200)
        lengths += tokens
        await controller.play(submissions, tokens)
    state = controller._state
    assert controller.rows == 400
    assert (state.scheduler.waiting, state.scheduler.running, len(state.open)) == (0, 0, 0)
    assert list(state.statistics.rows()) == [f"played/{i}" for i in range(399, 349, -1)]
    found = [v for v in state.statistics.latencies(1e9) if v.window_s == SINCE_START]
    assert [v.output_tokens for v in found if v.by == "all"] == [sum(lengths)]
    assert sum(v.requests for v in found if v.by == "tenant") == 400
    assert len([v for v in found if v.by == "tenant"]) == 6
