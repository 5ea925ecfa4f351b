"""The messages between clients, the controller and replicas, and what an engine must do.

Control messages carry sizes and counts. Token ids and text travel only from a client to a replica
(inside a `Generation`, by object reference when long) and from a replica to the client (`Delta`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine can hold, known once it has loaded and profiled.

    Attributes:
        model: Model path or name.
        kv_blocks: KV-cache blocks that requests can use.
        block_size: Tokens per block.
        max_num_seqs: Requests that can run at once.
        max_model_len: Prompt plus output tokens one request may have.
        kind: `vllm` or `simulated`; reports print it.
    """

    model: str
    kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    kind: str = "vllm"


class PromptSlice(msgspec.Struct, frozen=True):
    """A prompt inside a chunk of prompts in the object store.

    Attributes:
        chunk: `ObjectRef` to packed token ids of many prompts.
        start: First byte of this prompt.
        stop: One past its last byte.
    """

    chunk: Any
    start: int
    stop: int


class Generation(msgspec.Struct, frozen=True):
    """One request as an engine runs it.

    Attributes:
        request_id: Unique in the cluster; an engine runs it at most once at a time.
        client_id: Whose outbox the deltas go to.
        prompt: Token ids as little-endian int32 bytes (`pack_tokens`), or where to find them;
            a replica resolves the reference before its engine sees the prompt. Ends with the output
            tokens that exist already when the request is continued.
        generated_tokens: How many of the last prompt tokens are earlier output.
        sampling: Keyword arguments of `vllm.SamplingParams`.
        attempt: Number of this dispatch of the request, from 1; stamped on every delta so that a
            client can tell an old attempt's deltas from the current one's.
        priority: Rank inside the engine, smaller first.
        interactive: Whether somebody reads along, so that tokens must not wait for company.
    """

    request_id: str
    client_id: str
    prompt: bytes | PromptSlice
    generated_tokens: int = 0
    sampling: dict[str, Any] = {}
    attempt: int = 1
    priority: int = 0
    interactive: bool = True


class Delta(msgspec.Struct):
    """New output of one request since the last delta of the same attempt.

    Attributes:
        request_id: Whose output.
        token_ids: New output tokens.
        text: New text.
        finish_reason: None while running; then `stop`, `length`, `abort` or `error`.
        error: What went wrong when `finish_reason` is `error`.
        first_token_s: Seconds from the engine's acceptance to the attempt's first token; None
            before it.
        preemptions: Times the engine preempted the request so far in this attempt.
        recomputed_tokens: Tokens whose KV was computed again because of that, so far.
        energy_joules: Energy attributed to the request in this attempt; None: not measured.
        attempt: The dispatch it belongs to.
    """

    request_id: str
    token_ids: list[int] = []
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    first_token_s: float | None = None
    preemptions: int = 0
    recomputed_tokens: int = 0
    energy_joules: float | None = None
    attempt: int = 0


class EngineLoad(msgspec.Struct, frozen=True):
    """What an engine says of itself after its latest step.

    Attributes:
        running: Requests in the batch.
        waiting: Requests the engine has accepted but not started or has preempted.
        kv_usage: Share of the KV-cache blocks in use, 0 to 1.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


class Finished(msgspec.Struct, frozen=True):
    """Replica to controller: one request ended there.

    Attributes:
        request_id: Which.
        client_id: Whose it was.
        attempt: The dispatch that ended.
        output_tokens: Tokens counted from the original prompt.
        finish_reason: `stop`, `length`, `abort` or `error`.
        preemptions: Times the engine preempted it.
        recomputed_tokens: Tokens computed again because of that.
    """

    request_id: str
    client_id: str
    attempt: int
    output_tokens: int
    finish_reason: str
    preemptions: int = 0
    recomputed_tokens: int = 0


class ReplicaReport(msgspec.Struct, frozen=True):
    """Replica to controller, at once after a request ended and otherwise a few times a second.

    Attributes:
        replica_id: Who reports.
        progress: Output tokens by request id, counted from each original prompt.
        finished: Requests that ended since the last report that was received.
        load: The engine's own state.
        total_joules: Energy metered since the replica started; None: not measured.
        energy_source: The meter's name.
        sent_s: Wall-clock time of the report, so that its age can be told.
    """

    replica_id: str
    progress: dict[str, int]
    finished: list[Finished]
    load: EngineLoad
    total_joules: float | None
    energy_source: str
    sent_s: float


class Engine(Protocol):
    """One inference engine. `VllmEngine` and `SimulatedEngine` implement it.

    All methods are called on one event loop. `output_ready` is set after an engine step whose
    output should not wait (a first token, a finish, an error); outputs of other steps are
    collected until somebody drains.
    """

    output_ready: asyncio.Event

    async def start(self) -> EngineInfo:
        """Load the model, profile memory and return what fits.

        Raises:
            EngineStartError: The engine cannot run here; the message says why and what to change.
        """

    async def submit(self, generations: Sequence[Generation]) -> None:
        """Begin the generations. A bad one yields a `Delta` with `finish_reason='error'`."""

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Stop the requests and free their memory; unknown ids are ignored. No delta follows."""

    def drain(self, *, finished_only: bool = False) -> list[Delta]:
        """Everything new since the last call, at most one delta per request.

        With `finished_only` requests that go on are left for a later call.
        """

    def load(self) -> EngineLoad:
        """State after the latest step."""

    def steps(self) -> NDArray[np.float64]:
        """The latest steps that followed one another without a gap, with what they computed.

        Shape `(steps, 5)`: seconds, then the fields of `StepWork` (see `StepLog`).
        """

    def check(self) -> None:
        """Raise `EngineDeadError` when the engine can no longer make progress."""

    async def stop(self) -> None:
        """Release accelerators and child processes."""


class EngineStartError(RuntimeError):
    """The engine could not be brought up."""


class EngineDeadError(RuntimeError):
    """The engine has died and will not produce any further output."""


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    return np.asarray(token_ids, "<i4").tobytes()


def unpack_tokens(packed: bytes | PromptSlice) -> list[int]:
    """The token ids in `packed`, a prompt that is at hand."""
    assert isinstance(packed, bytes), "the replica resolves references before the engine runs"
    tokens: list[int] = np.frombuffer(packed, "<i4").tolist()
    return tokens
