"""The cluster from plain Python, without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from cluster.asking import asked
from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig, ConfigError, parse_config
from cluster.lifecycle import running_cluster
from cluster.messages import ClusterStatus
from cluster.prompts import Message, PromptEncoder
from policies.request import RequestClass
from predictor.excerpt import chat_text, excerpt

WINDOW = 1024
"""Prompts in flight at once, answers that nobody has taken yet included."""

LOOK_S = 0.5
"""How often it is looked whether answers were taken, or nobody wants any more."""


class Cluster:
    """A running cluster: one that is joined, or one that is brought up for the block.

    Example:
        with Cluster(replicas={"count": 2}) as cluster:
            for completion in cluster.generate(["What is a tie-break?"], max_tokens=64):
                print(completion.text)

    Args:
        config: Configuration for a cluster that has to be brought up, or its fields by keyword;
            a running cluster is joined as it is.

    Raises:
        ConfigError: A field is unknown or out of range, or fields are given besides `config`.
        RayUnreachableError: No Ray cluster answers at the configured address.
        StartError: No replica could be started.
    """

    def __init__(self, config: ClusterConfig | None = None, **fields: Any) -> None:
        if config is not None and fields:
            raise ConfigError(f"{', '.join(fields)} given besides a configuration: put them in it")
        self._config = config or parse_config(fields)
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as entered:
            self._controller, joined = entered.enter_context(running_cluster(self._config))
            if joined:
                self._config = ClusterConfig(**asked(self._controller.config))
            self._encoder = PromptEncoder(self._config.model)
            self._exit = entered.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit.close()

    def status(self) -> ClusterStatus:
        """What the controller knows now."""
        status: ClusterStatus = asked(self._controller.status)
        return status

    def generate(
        self,
        prompts: Iterable[str | list[Message]],
        *,
        max_tokens: int = 256,
        chat_template: bool = True,
        request_class: RequestClass = RequestClass.OFFLINE,
        **sampling: Any,
    ) -> Iterator[Completion]:
        """Generate answers, yielded as they finish; `request_id` is the prompt's ordinal number.

        Args:
            prompts: Texts, or lists of chat messages; read as capacity allows.
            max_tokens: Most tokens of each answer.
            chat_template: Whether a text is put to the model as a user's chat message.
            request_class: Offline work yields to online work.
            **sampling: Further arguments of `vllm.SamplingParams`.
        """
        run = f"{uuid.uuid4().hex[:8]}/"
        requests = (
            GenerationRequest(
                request_id=f"{run}{ordinal}",
                prompt_token_ids=self._encoder.encode(prompt, chat_template=chat_template),
                max_tokens=max_tokens,
                sampling=sampling,
                request_class=request_class,
                text=excerpt(prompt if isinstance(prompt, str) else chat_text(prompt)),
                patient=True,
            )
            for ordinal, prompt in enumerate(prompts)
        )
        for completion in self._stream(requests):
            ordinal = completion.request_id.removeprefix(run)
            yield msgspec.structs.replace(completion, request_id=ordinal)

    def _stream(self, requests: Iterator[GenerationRequest]) -> Iterator[Completion]:
        """Run the requests on an event loop in a thread, `WINDOW` ahead of whoever takes them."""
        done: queue.SimpleQueue[Completion | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        async def run() -> None:
            async with ClusterClient(self._controller) as client:
                pending: set[asyncio.Task[Completion]] = set()
                while not stopped.is_set():
                    free = max(WINDOW - len(pending) - done.qsize(), 0)
                    for request in itertools.islice(requests, free):
                        pending.add(asyncio.create_task(client.complete(request)))
                    if not pending and free:
                        return
                    if not pending:
                        await asyncio.sleep(LOOK_S)
                        continue
                    finished, pending = await asyncio.wait(
                        pending, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in finished:
                        done.put(task.result())

        def thread() -> None:
            try:
                asyncio.run(run())
                done.put(None)
            except BaseException as error:
                done.put(error)

        worker = threading.Thread(target=thread, name="tiebreak-client", daemon=True)
        worker.start()
        try:
            while (item := done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            worker.join()
