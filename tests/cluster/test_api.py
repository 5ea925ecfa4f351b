"""The cluster from plain Python, without Ray."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import api
from cluster.api import Cluster
from cluster.call import Call, Completion, GenerationRequest
from cluster.config import ClusterConfig, ConfigError
from replicas.protocol import Delta


class Client:
    """A client whose cluster answers at once."""

    def __init__(self, controller: Any) -> None:
        pass

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def complete(self, request: GenerationRequest) -> Completion:
        """The request's end."""
        call = Call(request)
        call.receive(Delta(request.request_id, [1], "a", "stop", attempt=1), "replica-0")
        return call.completion()


class Encoder:
    """Knows one token."""

    def __init__(self, model: str) -> None:
        if model == "broken":
            raise ValueError("no tokenizer")

    def encode(self, prompt: str, *, chat_template: bool) -> list[int]:
        """The token."""
        return [1]


class Controller:
    """Has begun and has ended, as a test sees."""

    ended = False

    @contextlib.contextmanager
    def running(self, config: ClusterConfig) -> Iterator[tuple[Controller, bool]]:
        """A cluster of its own for a block."""
        try:
            yield self, False
        finally:
            self.ended = True


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    controller = Controller()
    monkeypatch.setattr(api, "running_cluster", controller.running)
    monkeypatch.setattr(api, "PromptEncoder", Encoder)
    monkeypatch.setattr(api, "ClusterClient", Client)
    monkeypatch.setattr(api, "LOOK_S", 0.01)
    return controller


def test_prompts_are_read_no_further_ahead_than_the_window(controller: Controller) -> None:
    read = itertools.count()
    ahead = 0

    def prompts() -> Iterator[str]:
        nonlocal ahead
        for number in read:
            ahead = number + 1
            yield "a"

    with Cluster() as cluster:
        answers = cluster.generate(prompts())
        for _ in range(3 * api.WINDOW):
            next(answers)
        time.sleep(0.3)  # in which a reader without bounds reads thousands
        assert ahead <= 4 * api.WINDOW
        answers.close()  # type: ignore[attr-defined]
    assert controller.ended


@pytest.mark.parametrize("count", [0, 1, api.WINDOW, 2 * api.WINDOW + 1])
def test_every_prompt_is_answered_once(controller: Controller, count: int) -> None:
    with Cluster() as cluster:
        answers = list(cluster.generate(["a"] * count))
    assert sorted(int(answer.request_id) for answer in answers) == list(range(count))


def test_a_cluster_that_cannot_be_entered_does_not_stay(controller: Controller) -> None:
    broken = Cluster(model="broken")
    with pytest.raises(ValueError, match="no tokenizer"):
        broken.__enter__()
    assert controller.ended


def test_fields_besides_a_configuration_are_not_passed_over() -> None:
    with pytest.raises(ConfigError, match="replicas given besides"):
        Cluster(ClusterConfig(), replicas={"count": 2})
