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

from policies.forecast import Forecast
from replicas.request_work import Worked


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


class EngineTerms(msgspec.Struct, frozen=True):
    """What an engine's own scheduler knows of a request beyond its sizes.

    The forecast is the one that the controller decides with, bounds that were learned included.

    Attributes:
        mu: See `policies.forecast.Forecast`.
        sigma: The same.
        lower: The same, in tokens counted from the original prompt.
        upper: The same.
        key: The ordering's key, smaller first; comparable with those of all other requests.
        arrival_s: When the request entered the cluster, in seconds of the controller's clock.
        precedence: Its request class: a smaller one goes before a larger one whatever the keys.
        evictions: Times it was evicted before this attempt.
    """

    mu: float
    sigma: float
    lower: int
    upper: int
    key: float
    arrival_s: float
    precedence: int = 0
    evictions: int = 0

    @property
    def forecast(self) -> Forecast:
        """The forecast."""
        return Forecast(self.mu, self.sigma, self.lower, self.upper, "cluster")


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
        terms: What the engine's own scheduler decides with; None: it knows the sizes alone.
        ticket: What the controller wants back should it have forgotten the request; opaque here.
        trace: `traceparent` of W3C's Trace Context, under which the engine's own spans belong;
            empty: none.
    """

    request_id: str
    client_id: str
    prompt: bytes | PromptSlice
    generated_tokens: int = 0
    sampling: dict[str, Any] = {}
    attempt: int = 1
    priority: int = 0
    interactive: bool = True
    terms: EngineTerms | None = None
    ticket: bytes = b""
    trace: str = ""


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
        energy_joules: Energy attributed to the attempt, told at its end; None: not measured.
        wasted_joules: The part of it that computed tokens again.
        attempt: The dispatch it belongs to.
        stop_reason: The stop string or token that ended it; None: another end.
        logprobs: vLLM's own, an entry per token of `token_ids`; None: not asked for.
        prompt_logprobs: vLLM's own, with the first tokens; None: not asked for, or given before.
        cached_tokens: Prompt tokens whose KV the engine had already.
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
    wasted_joules: float | None = None
    attempt: int = 0
    stop_reason: int | str | None = None
    logprobs: list[Any] | None = None
    prompt_logprobs: list[Any] | None = None
    cached_tokens: int = 0


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


class EnergyTotals(msgspec.Struct, frozen=True):
    """A replica's energy since its engine was ready, booked: the meter's count is the sum of it.

    `metered_joules = request_joules + idle_joules + unattributed_joules` at every moment.

    Attributes:
        source: The meter's name; `none`: nothing is measured, and all figures are 0.
        metered_joules: What the meter has counted.
        request_joules: Booked to requests, whether they have ended or not.
        wasted_joules: The part of `request_joules` that computed tokens again.
        idle_joules: What the hardware takes without work.
        unattributed_joules: Work of which nobody can say whose it was, or not yet: it can fall.
        power_w: Mean power over the last second or so, in watts of the engine's clock; None: the
            meter has not answered since.
        idle_w: The part of it that is taken for idle power, in watts.
    """

    source: str = "none"
    metered_joules: float = 0.0
    request_joules: float = 0.0
    wasted_joules: float = 0.0
    idle_joules: float = 0.0
    unattributed_joules: float = 0.0
    power_w: float | None = 0.0
    idle_w: float = 0.0


class Stalled(msgspec.Struct, frozen=True):
    """A request that waits inside an engine, evicted there or not started.

    Attributes:
        tokens: Output tokens that exist, counted from the original prompt.
        evictions: Times it was evicted so far, over all attempts.
    """

    tokens: int
    evictions: int


class Held(msgspec.Struct, frozen=True):
    """A request that a replica runs, as it tells a controller that knows nothing of it.

    Attributes:
        ticket: See `Generation.ticket`.
        output_tokens: Output tokens that exist, counted from the original prompt.
    """

    ticket: bytes
    output_tokens: int


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
        first_token_s: Seconds from the engine's acceptance to the attempt's first token; None: it
            made none.
        running_s: Seconds from the engine's acceptance to the attempt's end.
        energy_joules: Energy attributed to it in this attempt; None: not measured.
        wasted_joules: The part of it that computed tokens again.
    """

    request_id: str
    client_id: str
    attempt: int
    output_tokens: int
    finish_reason: str
    preemptions: int = 0
    recomputed_tokens: int = 0
    first_token_s: float | None = None
    running_s: float = 0.0
    energy_joules: float | None = None
    wasted_joules: float | None = None


class ReplicaReport(msgspec.Struct, frozen=True):
    """Replica to controller, at once after a request ended and otherwise a few times a second.

    Attributes:
        replica_id: Who reports.
        progress: Output tokens by request id, counted from each original prompt.
        finished: Requests that ended since the last report that was received.
        load: The engine's own state.
        energy: What was metered, and for whom.
        sent_s: Wall-clock time of the report, so that its age can be told.
        stalled: All requests that wait inside the engine, complete in every report.
    """

    replica_id: str
    progress: dict[str, int]
    finished: list[Finished]
    load: EngineLoad
    energy: EnergyTotals
    sent_s: float
    stalled: dict[str, Stalled] = {}


class Engine(Protocol):
    """One inference engine. `VllmEngine` and `SimulatedEngine` implement it.

    All methods are called on one event loop. `output_made` is set when there is output to
    drain; `output_ready` too when it should not wait: a first token, an end, an error. `drain`
    clears both. `stall_changed` is set when `stalled` answers differently;
    whoever awaits it clears it.
    """

    output_made: asyncio.Event
    output_ready: asyncio.Event
    stall_changed: asyncio.Event

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

    def stalled(self) -> dict[str, Stalled]:
        """The requests that wait in the engine, by id; empty where its scheduler reports none."""

    def steps(self) -> NDArray[np.float64]:
        """The latest steps that followed one another without a gap, with what they computed.

        Shape `(steps, 5)`: seconds, then the fields of `StepWork` (see `StepLog`).
        """

    def worked(self) -> Worked:
        """What has been done since the last call; counted from the first call on."""

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
