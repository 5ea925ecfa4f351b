"""Energy is booked to whom it was used for, and the books balance (I9)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas.energy_account import EnergyAccount, RequestEnergy
from replicas.protocol import EnergyTotals
from replicas.request_work import NO_REQUEST_WORK, RequestWork, Worked
from replicas.step_time import LinearStepTime

WEIGHTS = LinearStepTime(
    base_s=8.0,
    per_prefill_token_s=1.0,
    per_decode_token_s=2.0,
    per_kv_token_s=0.5,
    per_prefill_pair_s=0.25,
)
NOTHING: Mapping[str, RequestWork] = {}


def make_account(idle_w: float | None = 0.0) -> EnergyAccount:
    """An account that has been read once, at 0 s and 0 J."""
    account = EnergyAccount("replay", idle_w)
    account.weights = WEIGHTS
    account.read(0.0, Worked(0.0, NOTHING))
    return account


def decoded(tokens: int, share: float = 1.0) -> RequestWork:
    """Without context, so that it weighs two seconds a token and eight a whole step."""
    return RequestWork(decode_shares=share * tokens, decode_tokens=tokens)


def prefilled(tokens: int, recomputed: int = 0) -> RequestWork:
    return RequestWork(prefill_tokens=tokens, recomputed_tokens=recomputed)


def balance(totals: EnergyTotals) -> float:
    return totals.request_joules + totals.idle_joules + totals.unattributed_joules


def test_work_is_weighed_by_the_time_it_takes() -> None:
    work = RequestWork(
        prefill_shares=0.5,
        prefill_tokens=10,
        prefill_pairs=55,
        recomputed_tokens=4,
        decode_shares=0.25,
        decode_tokens=3,
        context_tokens=40,
    )
    assert work.prefill_seconds(WEIGHTS) == 0.5 * 8 + 10 + 55 * 0.25
    assert work.decode_seconds(WEIGHTS) == 0.25 * 8 + 3 * 2 + 40 * 0.5
    assert work.recomputed_share == 0.4
    assert work.plus(work) == RequestWork(*(2 * value for value in work))


def test_requests_share_what_is_above_idle_by_their_work() -> None:
    account = make_account(idle_w=10.0)
    account.begin("a")
    account.begin("b")
    account.read(120.0, Worked(2.0, {"a": decoded(3, 0.5), "b": decoded(1, 0.5)}))
    assert account.totals.idle_joules == 20.0
    assert account.totals.request_joules == pytest.approx(100.0)
    assert account.end("a") == (pytest.approx(75.0), 0.0)
    assert account.end("b") == (pytest.approx(25.0), 0.0)


def test_all_is_idle_without_work() -> None:
    account = make_account(idle_w=10.0)
    account.read(500.0, Worked(2.0, NOTHING))
    assert account.totals == EnergyTotals(
        "replay", 500.0, idle_joules=500.0, power_w=250.0, idle_w=10.0
    )


def test_idle_power_is_the_lowest_seen_without_work() -> None:
    account = make_account(idle_w=None)
    for at_s, joules in ((1.0, 50.0), (2.0, 80.0), (3.0, 140.0)):  # 30 W between the first two
        account.read(joules, Worked(at_s, NOTHING))
    account.begin("a")
    account.read(300.0, Worked(5.0, {"a": decoded(1)}))
    assert account.totals.idle_w == 30.0
    assert account.end("a") == (pytest.approx(160.0 - 2 * 30.0), 0.0)


def test_recomputed_tokens_are_waste() -> None:
    account = make_account()
    account.begin("a")
    work = RequestWork(0.5, 12, 0, recomputed_tokens=3, decode_tokens=2)
    account.read(100.0, Worked(1.0, {"a": work}))
    energy = account.end("a")
    assert energy == (pytest.approx(100.0), pytest.approx(100.0 * (16 / 20) * (3 / 12)))
    assert account.totals.wasted_joules == pytest.approx(20.0)


def test_the_prefill_of_a_continued_request_is_waste() -> None:
    account = make_account()
    account.begin("a", continued=True)
    account.read(100.0, Worked(1.0, {"a": RequestWork(prefill_tokens=6, decode_tokens=2)}))
    assert account.end("a") == (pytest.approx(100.0), pytest.approx(60.0))


def test_a_slow_counter_is_waited_for_and_what_ends_meanwhile_is_told_the_latest_rate() -> None:
    account = make_account()
    for name in "ab":
        account.begin(name)
    account.read(60.0, Worked(1.0, {"a": decoded(1), "b": decoded(2)}))
    account.read(60.0, Worked(1.1, {"a": decoded(1), "b": decoded(1)}))
    assert account.end("a") == (pytest.approx(20.0 + 20.0), 0.0)
    assert account.totals.request_joules == 60.0
    account.read(100.0, Worked(1.2, {"b": decoded(1)}))
    assert account.totals.request_joules == pytest.approx(100.0)
    # Two thirds of what was waited for were b's, whatever a had been told.
    assert account.end("b") == (pytest.approx(40.0 + 40.0 * 2 / 3), 0.0)


def test_the_latest_rate_forgets_half_of_what_was_in_a_second() -> None:
    account = make_account()
    account.begin("a")
    account.read(100.0, Worked(1.0, {"a": decoded(1)}))
    account.read(120.0, Worked(2.0, {"a": decoded(1)}))
    account.read(120.0, Worked(2.1, {"a": decoded(1)}))
    watts_of_work = (100.0 / 2 + 20.0) / (10.0 / 2 + 10.0)
    assert account.end("a") == (pytest.approx(120.0 + 10.0 * watts_of_work), 0.0)


def test_a_meter_that_does_not_answer_is_made_up_for_when_it_does() -> None:
    account = make_account(idle_w=5.0)
    account.begin("a")
    account.read(None, Worked(1.0, {"a": decoded(1)}))
    assert account.totals.metered_joules == 0.0
    account.read(100.0, Worked(4.0, {"a": decoded(1)}))
    assert account.totals.idle_joules == 20.0
    assert account.end("a") == (pytest.approx(80.0), 0.0)


def test_what_ends_before_any_work_was_metered_is_not_guessed_at() -> None:
    account = make_account()
    account.begin("a")
    account.begin("b")
    account.read(None, Worked(1.0, {"a": decoded(1)}))
    assert account.end("a") is None
    assert account.end("b") == (0.0, 0.0), "it did nothing"


def test_energy_of_a_step_under_way_waits_for_its_owner() -> None:
    account = make_account()
    account.begin("a")
    account.read(70.0, Worked(1.0, NOTHING))
    assert account.totals.unattributed_joules == 70.0
    account.read(100.0, Worked(2.0, {"a": decoded(1)}))
    assert account.totals.unattributed_joules == 0.0
    assert account.end("a") == (pytest.approx(100.0), 0.0)


def test_a_prompts_owner_claims_what_was_nobodys() -> None:
    account = make_account()
    account.begin("a")
    account.begin("b")
    account.read(100.0, Worked(1.0, {"a": decoded(1)}, unowned=prefilled(40)))
    assert account.totals.unattributed_joules == pytest.approx(80.0)
    late = RequestWork(prefill_tokens=10, begun_tokens=40, recomputed_tokens=25)
    account.read(120.0, Worked(2.0, {"a": decoded(1), "b": late}))
    assert account.totals.unattributed_joules == pytest.approx(0.0)
    assert account.end("b") == (pytest.approx(80.0 + 10.0), pytest.approx(45.0))


def test_work_that_never_finds_its_owner_stays_nobodys() -> None:
    account = make_account()
    account.begin("a")
    account.read(100.0, Worked(1.0, {"a": decoded(1)}, unowned=prefilled(40)))
    account.read(200.0, Worked(2.0, {"a": decoded(3)}, unowned=prefilled(10), abandoned=True))
    account.read(210.0, Worked(3.0, {"a": RequestWork(prefill_tokens=10, begun_tokens=50)}))
    assert account.totals.unattributed_joules == pytest.approx(80.0 + 25.0)
    assert account.end("a") == (pytest.approx(20.0 + 75.0 + 10.0), 0.0)


def test_what_an_engine_does_for_a_request_that_has_ended_is_nobodys() -> None:
    account = make_account()
    account.begin("a")
    account.begin("b")
    account.end("a")
    account.read(100.0, Worked(1.0, {"a": decoded(1), "b": decoded(1)}))
    assert account.totals.unattributed_joules == pytest.approx(50.0)
    assert account.totals.request_joules == pytest.approx(50.0)


def test_without_a_meter_nothing_is_told() -> None:
    account = EnergyAccount("none")
    account.begin("a")
    account.read(None, Worked(1.0, {"a": decoded(1)}))
    assert account.end("a") is None
    assert account.end("nobody") is None
    assert account.totals == EnergyTotals()


def test_power_is_that_of_the_last_second() -> None:
    account = make_account()
    for tenth in range(1, 31):
        joules = 10.0 * tenth if tenth <= 20 else 200.0 + 30.0 * (tenth - 20)
        account.read(joules, Worked(tenth / 10, NOTHING))
    assert account.totals.power_w == pytest.approx(300.0)


def test_power_is_not_known_while_the_meter_does_not_answer() -> None:
    account = make_account()
    for tenth in range(1, 11):
        account.read(30.0 * tenth, Worked(tenth / 10, NOTHING))
    account.read(None, Worked(1.9, NOTHING))
    assert account.totals.power_w == pytest.approx(300.0)
    account.read(None, Worked(2.1, NOTHING))
    assert account.totals.power_w is None
    account.read(600.0, Worked(2.2, NOTHING))
    assert account.totals.power_w == pytest.approx(300 / 1.2)


def test_power_falls_when_the_meter_stands_still() -> None:
    account = make_account()
    for tenth in range(1, 11):
        account.read(30.0 * tenth, Worked(tenth / 10, NOTHING))
    for tenth in range(11, 20):
        account.read(300.0, Worked(tenth / 10, NOTHING))
    assert account.totals.power_w == pytest.approx(300.0), "the counter may only be slow"
    account.read(300.0, Worked(2.1, NOTHING))
    assert account.totals.power_w == 0.0
    account.begin("a")
    account.read(360.0, Worked(2.2, {"a": decoded(1)}))
    assert account.end("a") == (pytest.approx(60.0), 0.0)


# Some or none: the rate of work that took next to no time says nothing, and may be infinite.
step_shares = st.just(0.0) | st.floats(1e-3, 2)
works = st.builds(
    RequestWork,
    prefill_shares=step_shares,
    prefill_tokens=st.integers(0, 50),
    prefill_pairs=st.integers(0, 500),
    recomputed_tokens=st.just(0),
    decode_shares=step_shares,
    decode_tokens=st.integers(0, 5),
    context_tokens=st.integers(0, 500),
    begun_tokens=st.integers(0, 30),
)
names = st.sampled_from("abcd")
happenings = st.one_of(
    st.tuples(st.just("begin"), names, st.booleans()),
    st.tuples(st.just("end"), names),
    st.tuples(
        st.just("read"),
        st.one_of(st.none(), st.floats(0, 500)),
        st.floats(0.001, 2),
        st.dictionaries(names, works),
        st.one_of(st.just(NO_REQUEST_WORK), works.map(lambda w: prefilled(w.prefill_tokens))),
        st.booleans(),
    ),
)


@given(st.lists(happenings, max_size=40), st.one_of(st.none(), st.floats(0, 200)))
def test_the_books_balance_whatever_happens(
    happened: list[tuple[object, ...]], idle_w: float | None
) -> None:
    account = EnergyAccount("replay", idle_w)
    account.weights = WEIGHTS
    at_s = total = counted = 0.0
    told: list[RequestEnergy] = []
    for what, *arguments in happened:
        match what, arguments:
            case "begin", [str(name), bool(continued)]:
                account.begin(name, continued=continued)
            case "end", [str(name)]:
                if (energy := account.end(name)) is not None:
                    told.append(energy)
            case "read", [increase, float(elapsed_s), dict(done), RequestWork() as un, bool(gone)]:
                at_s += elapsed_s
                if isinstance(increase, float):
                    total += increase
                    counted = total
                answer = total if increase is not None else None
                account.read(answer, Worked(at_s, done, un, abandoned=gone))
        totals = account.totals
        assert totals.metered_joules == counted
        assert balance(totals) == pytest.approx(counted, rel=1e-9, abs=1e-6)
        assert totals.wasted_joules <= totals.request_joules + 1e-6
        figures = (totals.request_joules, totals.idle_joules, totals.unattributed_joules)
        assert min(figures) >= -1e-6
    assert all(0 <= energy.wasted_joules <= energy.joules + 1e-6 for energy in told)
