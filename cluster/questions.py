"""Requests that wait for a forecast: bounded, and in the order in which one helps most."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from cluster.messages import Submission
from policies.request import RequestClass
from predictor.messages import ForecastQuery


class Lane(enum.IntEnum):
    """How much a forecast still helps; the smaller lane is asked for first and dropped last."""

    ONLINE = 0
    OFFLINE = 1
    RUNNING = 2


class Questions:
    """At most `room` questions.

    Requests that wait in the scheduler's queue are asked for before those that run already, because
    a forecast can still change the former's place, and only corrects the latter's memory; online
    ones come before offline ones, as they do in that queue. Inside a lane the newest comes first,
    and with no room left the oldest question of the last lane is dropped and keeps its prior: a
    new request has the longest life ahead of it, in which a forecast can act. When questions come
    faster than answers, the newest are then answered while they still wait, where first come first
    served would answer each of them too late; when they do not, the order makes no difference.

    Args:
        room: Most questions, at least 1.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._lanes = [OrderedDict[str, ForecastQuery]() for _ in Lane]
        self.dropped = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def add(self, query: ForecastQuery, request_class: RequestClass) -> None:
        """A request that waits needs a forecast; asking again replaces the older question."""
        self.forget(query.request_id)
        lane = Lane.ONLINE if request_class is RequestClass.ONLINE else Lane.OFFLINE
        self._lanes[lane][query.request_id] = query
        if len(self) > self._room:
            next(lane for lane in reversed(self._lanes) if lane).popitem(last=False)
            self.dropped += 1

    def dispatched(self, request_id: str) -> None:
        """The request runs now."""
        for lane in self._lanes[: Lane.RUNNING]:
            if (query := lane.pop(request_id, None)) is not None:
                self._lanes[Lane.RUNNING][request_id] = query

    def forget(self, request_id: str) -> None:
        """The request needs no forecast any more."""
        for lane in self._lanes:
            lane.pop(request_id, None)

    def take(self, most: int) -> list[ForecastQuery]:
        """The questions to ask now, up to `most`; they are not here any longer."""
        taken: list[ForecastQuery] = []
        for lane in self._lanes:
            while lane and len(taken) < most:
                taken.append(lane.popitem()[1])
        return taken


def question_of(submission: Submission, model: str) -> ForecastQuery:
    """What is asked for a request to `model`."""
    return ForecastQuery(
        submission.generation.request_id,
        model,
        submission.prompt_tokens,
        submission.max_tokens,
        submission.text,
        _temperature(submission.generation.sampling),
    )


def _temperature(sampling: Mapping[str, Any]) -> float:
    """What a request is sampled with; vLLM's own default where it does not say or says nonsense."""
    temperature = sampling.get("temperature")
    if isinstance(temperature, int | float) and 0 <= temperature < math.inf:
        return float(temperature)
    return 1.0
