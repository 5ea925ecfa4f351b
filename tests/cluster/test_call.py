"""How a request goes on after an attempt has ended early, from the client's side; no Ray."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import ray

from cluster.call import Call, GenerationError, GenerationRequest, must_restart
from cluster.client import ClusterClient
from cluster.messages import Cause, Dispatched, Dropped, Orphaned, Refused
from cluster.submissions import submissions_of
from policies.forecast import Forecast
from replicas.protocol import Delta

FORECAST = Forecast(3.0, 1.0, 1, 10)


def call(**sampling: Any) -> Call:
    return Call(GenerationRequest("r", [1, 2, 3], max_tokens=10, sampling=sampling))


def receive(one: Call, delta: Delta) -> None:
    one.receive(delta, "replica-0")


def aborted(attempt: int, preemptions: int = 0, recomputed_tokens: int = 0) -> Delta:
    return Delta(
        "r",
        finish_reason="abort",
        preemptions=preemptions,
        recomputed_tokens=recomputed_tokens,
        attempt=attempt,
    )


@pytest.mark.parametrize(
    "sampling",
    [
        {"seed": 0},
        {"stop": ["\n"]},
        {"bad_words": ["no"]},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"structured_outputs": {"regex": "a*"}},
        {"thinking_token_budget": 0},
    ],
)
def test_what_depends_on_the_output_before_starts_again(sampling: dict[str, Any]) -> None:
    assert must_restart(sampling)
    one = call(**sampling)
    receive(one, Delta("r", [7, 8], "ab", attempt=1))
    assert one.restart(aborted(1))
    assert one.received_tokens == []
    receive(one, Delta("r", [7], "a", attempt=2))
    receive(one, Delta("r", [8, 9], "bc", "stop", attempt=2))
    assert (one.completion().token_ids, one.completion().text) == ([7, 8, 9], "abc")


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"seed": None, "stop": None, "bad_words": [], "structured_outputs": None},
        {"stop": [], "frequency_penalty": 0.0, "presence_penalty": 0, "repetition_penalty": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "min_tokens": 3, "logit_bias": {"5": 1.0}},
    ],
)
def test_anything_else_goes_on_from_its_tokens(sampling: dict[str, Any]) -> None:
    assert not must_restart(sampling)
    one = call(**sampling)
    receive(one, Delta("r", [7, 8], "ab", attempt=1))
    assert one.restart(aborted(1))
    assert one.received_tokens == [7, 8]
    receive(one, Delta("r", [99], "x", attempt=1))
    receive(one, Delta("r", [9], "c", "stop", attempt=2))
    assert (one.completion().token_ids, one.completion().text) == ([7, 8, 9], "abc")


def test_evictions_are_counted_over_all_attempts() -> None:
    one = call()
    receive(one, Delta("r", [7], preemptions=1, recomputed_tokens=4, attempt=1))
    # The last eviction comes to light only with the end of the attempt.
    assert one.restart(aborted(1, preemptions=2, recomputed_tokens=4))
    assert one.evictions == 2
    receive(one, Delta("r", [8], preemptions=1, recomputed_tokens=5, attempt=2))
    # Whoever tells of a lost replica knows nothing of its counts.
    assert one.restart(aborted(2))
    assert one.evictions == 3
    receive(one, Delta("r", [9], "", "stop", attempt=3))
    moved_tokens = (3 + 1) + (3 + 2)
    assert one.completion().preemptions == 3
    assert one.completion().recomputed_tokens == 4 + 5 + moved_tokens


def test_an_attempt_whose_tokens_had_all_come_is_over_and_the_controller_hears_of_it() -> None:
    client, one = following()
    receive(one, Delta("r", list(range(10)), attempt=1))
    client._handle(Dropped({"r": 1}))
    assert one.done
    assert one.completion().finish_reason == "length"
    assert not client._unsent
    assert client._abandoned == ["r"]


def test_news_of_an_attempt_that_is_over_changes_nothing() -> None:
    client, one = following()
    client._go_on(aborted(1))
    assert one.attempt == 2
    client._handle(Orphaned("replica-0", {"r": 1}))
    client._handle(Dropped({"r": 1}))
    client._go_on(aborted(1))
    assert one.attempt == 2
    assert client._unsent == [one]
    client._handle(Orphaned("replica-1", {"r": 2}))
    assert one.attempt == 3


def following() -> tuple[ClusterClient, Call]:
    """A client, not connected, with a request in flight."""
    client, one = ClusterClient(None), call()
    client._calls["r"] = one
    return client, one


def test_output_of_one_replica_only_is_taken() -> None:
    one = call()
    one.receive(Delta("r", [7], "a", attempt=1), "replica-0")
    one.receive(Delta("r", [7], "a", attempt=1), "replica-1")
    one.receive(Delta("r", [8], "b", attempt=1), "replica-0")
    assert not one.accepts(aborted(1), "replica-1")
    assert one.restart(aborted(1))
    one.receive(Delta("r", [9], "c", "stop", attempt=2), "replica-1")
    assert (one.completion().token_ids, one.completion().text) == ([7, 8, 9], "abc")


def dispatched(replica_id: str, attempt: int = 1) -> Dispatched:
    return Dispatched("r", attempt, replica_id, 0.0, FORECAST)


def test_the_first_token_is_timed_from_submission_whatever_became_of_earlier_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    moved, overtaken = call(), call()
    now_s = 103.0
    # Made at 103, though the word of its dispatch is still to come.
    overtaken.receive(Delta("r", [7], first_token_s=0.5, attempt=1), "replica-0")
    overtaken.dispatched("replica-0", FORECAST)
    assert overtaken.completion().ttft_s == 3.0
    moved.dispatched("replica-0", FORECAST)
    assert moved.restart(aborted(1))
    now_s = 120.0
    moved.dispatched("replica-1", FORECAST)
    now_s = 130.0
    moved.receive(Delta("r", [7], first_token_s=0.5, attempt=2), "replica-1")
    assert (moved.completion().queue_s, moved.completion().ttft_s) == (3.0, 20.5)


async def test_a_replica_that_a_dead_controller_had_not_chosen_is_not_waited_for() -> None:
    client, one = following()
    receive(one, Delta("r", [7], "a", attempt=1))
    client._handle(dispatched("replica-1"))
    assert (one.attempt, client._unsent) == (2, [one])
    assert not client._outputs._readers


class Unreadable:
    """A replica whose answers cannot be taken apart."""

    class take:  # noqa: N801  # an actor's method
        @staticmethod
        async def remote(client_id: str, received: int) -> tuple[int, list[Delta]]:
            raise ray.exceptions.RaySystemError("cannot be deserialised")


async def test_a_replica_whose_output_cannot_be_read_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "get_actor", lambda *_, **__: Unreadable)
    client, one = following()
    client._handle(dispatched("replica-0"))
    await asyncio.wait_for(client._unsent_filled.wait(), 10)
    assert (one.attempt, client._unsent) == (2, [one])
    client._handle(dispatched("replica-0", attempt=2))
    assert "replica-0" in client._outputs._readers, "it is read anew"
    await client._outputs._readers["replica-0"]


def test_a_restarted_controller_is_told_what_it_has_not_accepted() -> None:
    client, one = following()
    client._controller_number = 2
    client._submit_again([one])
    assert not client._unsent, "it is on its way already"
    one.known_to = 2
    client._submit_again([one])
    assert not client._unsent
    client._controller_number = 3
    client._submit_again([one])
    client._submit_again([one])
    assert client._unsent == [one]
    assert one.attempt == 1
    client._forget(one)
    assert client._abandoned == ["r"], "its attempt may run a second time"


def test_suspicion_of_a_request_stays_with_it() -> None:
    client, one = following()
    client._handle(Orphaned("replica-0", {"r": 1}, {"r": 0.5}))
    assert (one.strikes, one.attempt) == (0.5, 2)
    client._handle(Orphaned("replica-1", {"r": 2}, {"r": 1.5}))
    assert submissions_of(client.client_id, [one])[0].strikes == 1.5


async def test_an_error_has_its_cause_and_follows_what_came_before() -> None:
    one = call()
    receive(one, Delta("r", [7], "a", attempt=1))
    one.fail("too much", Cause.OVERLOADED, 3.0)
    assert (await one.deltas()).token_ids == [7]
    for _ in range(2):
        with pytest.raises(GenerationError, match="too much") as raised:
            await one.deltas()
        assert (raised.value.cause, raised.value.retry_after_s) == (Cause.OVERLOADED, 3.0)
    assert (one.completion().cause, one.completion().error) == (Cause.OVERLOADED, "too much")


async def test_a_patient_request_is_submitted_again_to_a_full_queue() -> None:
    refused = Refused("r", "full", Cause.OVERLOADED, 0.001, attempt=1)
    client, one = following()
    client._handle(refused)
    assert one.done
    client = ClusterClient(None)
    one = client._calls["r"] = Call(GenerationRequest("r", [1], 10, patient=True))
    client._handle(refused)
    assert not one.done
    assert not client._unsent
    await asyncio.wait_for(client._unsent_filled.wait(), 10)
    assert client._unsent == [one]


def test_log_probabilities_go_with_the_tokens_that_are_new() -> None:
    one = call(seed=1)
    prompt = [None, {2: "two"}, {3: "three"}]
    receive(one, Delta("r", [7], "a", attempt=1, logprobs=["7"], prompt_logprobs=prompt))
    assert one.restart(aborted(1))
    receive(one, Delta("r", [7, 8], "ab", attempt=2, logprobs=["7", "8"], prompt_logprobs=prompt))
    deltas = asyncio.run(one.deltas())
    assert (deltas.token_ids, deltas.logprobs) == ([7, 8], ["7", "8"])
    assert deltas.prompt_logprobs == prompt


async def test_client_that_was_not_entered_says_so_instead_of_waiting_for_ever() -> None:
    client = ClusterClient(None)
    with pytest.raises(RuntimeError, match="async with client"):
        await client.complete(GenerationRequest("r", [1], 4))
    with pytest.raises(RuntimeError, match="async with client"):
        await anext(client.generate(GenerationRequest("r", [1], 4)))


def test_what_a_dead_controller_had_accepted_says_so_to_the_next() -> None:
    client = ClusterClient(None)
    client._controller_number = 2
    known, new = Call(GenerationRequest("known", [1], 4)), Call(GenerationRequest("new", [1], 4))
    known.known_to = 1
    client._submit_again([known, new])
    assert client._unsent == [known]
    submissions = submissions_of(client.client_id, [known, new])
    assert [submission.accepted for submission in submissions] == [True, False]
