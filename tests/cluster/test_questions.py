from hypothesis import given
from hypothesis import strategies as st

from cluster.questions import Questions
from policies.request import RequestClass
from predictor.messages import ForecastQuery

ONLINE, OFFLINE = RequestClass.ONLINE, RequestClass.OFFLINE


def query(name: str) -> ForecastQuery:
    return ForecastQuery(name, "m", 10, 100, "text")


def filled(room: int = 100, **requests: RequestClass) -> Questions:
    questions = Questions(room)
    for name, request_class in requests.items():
        questions.add(query(name), request_class)
    return questions


def taken(questions: Questions, most: int = 100) -> list[str]:
    return [q.request_id for q in questions.take(most)]


def test_online_stands_before_offline_and_waiting_before_running() -> None:
    questions = filled(a=ONLINE, b=OFFLINE, c=OFFLINE, d=ONLINE)
    questions.dispatched("a")
    questions.dispatched("c")
    assert taken(questions, 3) == ["d", "b", "c"]
    assert taken(questions) == ["a"]
    assert len(questions) == 0


def test_the_newest_of_a_lane_comes_first() -> None:
    assert taken(filled(a=ONLINE, b=ONLINE, c=ONLINE)) == ["c", "b", "a"]


def test_without_room_the_oldest_of_those_that_need_it_least_is_dropped() -> None:
    questions = filled(3, a=ONLINE, b=OFFLINE, c=OFFLINE)
    questions.add(query("d"), ONLINE)  # b goes
    questions.dispatched("d")
    questions.add(query("e"), ONLINE)  # d goes: it runs
    assert questions.dropped == 2
    assert taken(questions) == ["e", "a", "c"]


def test_asking_again_replaces_and_forgetting_removes() -> None:
    questions = filled(a=OFFLINE, b=OFFLINE)
    questions.add(query("a"), ONLINE)
    questions.forget("b")
    questions.forget("unknown")
    questions.dispatched("unknown")
    assert taken(questions) == ["a"]


@given(
    room=st.integers(1, 6),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["online", "offline", "dispatched", "forget", "take"]),
            st.integers(0, 9),
        ),
        max_size=60,
    ),
)
def test_it_stays_bounded_and_loses_nothing_else(room: int, steps: list[tuple[str, int]]) -> None:
    questions, added, gone = Questions(room), 0, 0
    for step, number in steps:
        before = len(questions)
        if step in ("online", "offline"):
            questions.forget(str(number))
            gone += before - len(questions)
            questions.add(query(str(number)), ONLINE if step == "online" else OFFLINE)
            added += 1
        elif step == "dispatched":
            questions.dispatched(str(number))
        elif step == "forget":
            questions.forget(str(number))
            gone += before - len(questions)
        else:
            gone += len(questions.take(number))
        assert len(questions) <= room
        assert added == gone + questions.dropped + len(questions)
