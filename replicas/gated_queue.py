"""vLLM's waiting queue behind a gate: it shows a request only while that may start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from policies.gate import Gate
from replicas.engine_forecasts import Described, EngineForecasts
from replicas.shared_blocks import SharedBlocks


class _Known(NamedTuple):
    request: Request
    described: Described


class GatedQueue(RequestQueue):
    """Keeps vLLM's queue and the gate's account of the same engine in step.

    Its length counts all that wait; its truth says whether one may start now. A request that was
    popped has started once vLLM says that it runs; those that could not start are given back.

    Attributes:
        closed: Whether nobody may start.
        changes: Counts what has happened to the set of waiting requests.
    """

    def __init__(
        self, gate: Gate, forecasts: EngineForecasts, shared: SharedBlocks, by_priority: bool
    ) -> None:
        """Start empty.

        Args:
            gate: Decides.
            forecasts: Describes requests to it.
            shared: Knows which memory is shared.
            by_priority: Whether vLLM's priorities go before the gate's order.
        """
        self.closed = False
        self.changes = 0
        self._gate = gate
        self._forecasts = forecasts
        self._shared = shared
        self._by_priority = by_priority
        self._known: dict[str, _Known] = {}
        self._waiting: dict[str, Request] = {}
        self._popped: list[Request] = []
        self._started: list[Request] = []  # in the step that is being scheduled
        self._prefilling: list[Request] = []
        self._sharing = False
        self._missed = "", 0
        self._recount = False

    # What vLLM calls.

    def add_request(self, request: Request) -> None:
        """A request waits for its start."""
        self.changes += 1
        self._waiting[request.request_id] = request
        self._enter(request)

    def prepend_request(self, request: Request) -> None:
        """A request was preempted."""
        if not self._gate.runs(request.request_id):
            self.add_request(request)
            return
        self.changes += 1
        self._recount = True
        self._waiting[request.request_id] = request
        self._gate.evict(request.request_id, self.generated(request))

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Requests that were popped could not start."""
        for request in requests:
            self._popped.remove(request)
            self._waiting[request.request_id] = request
            self._gate.give_back(request.request_id)

    def peek_request(self) -> Request:
        """The request that may start.

        Raises:
            IndexError: None may.
        """
        request = self._first()
        if request is None:
            raise IndexError("no request may start")
        return request

    def pop_request(self) -> Request:
        """The same, taken out."""
        request = self.peek_request()
        del self._waiting[request.request_id]
        self._gate.hold(request.request_id)
        self._popped.append(request)
        return request

    def remove_request(self, request: Request) -> None:
        """Forget a request."""
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Forget requests; those that do not wait here are ignored."""
        for request in requests:
            if self._waiting.pop(request.request_id, None) is not None:
                self.changes += 1
                self._gate.remove(request.request_id)

    def __bool__(self) -> bool:
        return not self.closed and self._first() is not None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._popped)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting.values())

    # What the scheduler calls.

    def generated(self, request: Request) -> int:
        """Output tokens of a request, those in flight and those of its prompt included."""
        earlier = self._known[request.request_id].described.terms.generated_tokens
        tokens: int = earlier + request.num_output_tokens + request.num_output_placeholders
        return tokens

    def described(self, request: Request) -> Described:
        """What is known of a request."""
        return self._known[request.request_id].described

    def ended(self, request_ids: Iterable[str]) -> None:
        """Requests finished or were aborted."""
        for request_id in request_ids:
            known = self._known.get(request_id)
            if known is not None and known.request.is_finished():
                del self._known[request_id]
                self._gate.remove(request_id)
                self._forecasts.learn(*known)
                self._recount = True

    def catch_up(self, running: Sequence[Request]) -> None:
        """Bring the gate's account up to date before a step, when others run than it has started.

        Sessions and transfers pass the queue by.
        """
        if len(running) != self._gate.running:
            self._adopt(running)
        self._count_shared()

    def scheduled(self, output: SchedulerOutput, running: Sequence[Request]) -> None:
        """A step was scheduled: those that it started are projected, and all make progress."""
        self.settle()
        tokens = output.num_scheduled_tokens
        # Requests that may have been given more than the one token of a decode.
        prefills = {r.request_id: r for r in (*self._prefilling, *self._started)}
        others = output.total_num_scheduled_tokens - sum(tokens.get(i, 0) for i in prefills)
        unfinished = [r for r in prefills.values() if r.is_prefill_chunk]
        if len(tokens) == len(running) and others == len(tokens) - len(prefills):
            self._gate.advanced(1, {r.request_id: self.generated(r) for r in unfinished})
        else:
            self._gate.progressed({r.request_id: self.generated(r) for r in running})
            unfinished = [r for r in running if r.is_prefill_chunk]
        self._prefilling = unfinished
        self._started = []

    def settle(self) -> None:
        """Popped requests that vLLM has started are projected from now on."""
        for request in self._popped:
            if request.status == RequestStatus.RUNNING:
                self._gate.start(request.request_id)
                self._started.append(request)
                self.changes += 1
                if self._shared.possible and self._shared.begins_shared(request.request_id):
                    self._sharing = self._recount = True
        self._popped = [r for r in self._popped if r.status != RequestStatus.RUNNING]
        self._count_shared()

    def _first(self) -> Request | None:
        if not self._waiting:
            return None
        if self._popped:
            self.settle()
        request_id = self._gate.first()
        if request_id is None and self._shared.possible:
            request_id = self._first_with_prefix()
        return None if request_id is None else self._waiting[request_id]

    def _first_with_prefix(self) -> str | None:
        """The head, if it may start because running requests hold its prefix already."""
        head = self._gate.head()
        if head is None or (head, self.changes) == self._missed:
            return None
        hit = self._shared.hit(self._waiting[head])
        if not hit:
            # Asked again when another request has started: hardly anybody else can hold more of it.
            self._missed = head, self.changes
            return None
        self._gate.share(*self._shared.count(self._gate.running_ids, hit))
        self._sharing = self._recount = True
        return self._gate.first(self._shared.tokens(hit))

    def _count_shared(self) -> None:
        if self._sharing and self._recount:
            tokens, pool = self._shared.count(self._gate.running_ids)
            self._gate.share(tokens, pool)
            self._sharing = bool(pool)
        self._recount = False

    def _enter(self, request: Request) -> None:
        described = self._forecasts.describe(request)
        self._known[request.request_id] = _Known(request, described)
        terms = described.terms
        precedence = request.priority if self._by_priority else terms.precedence
        self._gate.add(
            described.sizes,
            described.forecast,
            key=terms.key,
            evictions=terms.evictions,
            precedence=precedence,
        )

    def _adopt(self, running: Sequence[Request]) -> None:
        """Others than the gate has started run: sessions and transfers that passed the queue by."""
        ids = {request.request_id for request in running}
        for request_id in self._gate.running_ids:
            if request_id not in ids:
                self._gate.remove(request_id)
        for request in running:
            if not self._gate.runs(request.request_id):
                self._enter(request)
                self._gate.start(request.request_id)
        self._gate.progressed({r.request_id: self.generated(r) for r in running})
        self._recount = True
