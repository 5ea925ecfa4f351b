"""A cluster in virtual time: the production scheduling core over simulated engines."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import replace

from cluster.arrivals import arrivals
from cluster.core.fleet_summary import NEVER
from cluster.scheduler import ClusterScheduler, Dispatch, ImpossibleRequestError, Recall
from cluster.simulated_rows import ROWS_AT_ONCE, LiveRequest, RowBuffer, RowSink
from cluster.simulation_result import SimulationResult
from cluster.timeline import TimelineSampler
from cluster.virtual_replica import FleetSpec, VirtualReplica
from cluster.workload import WorkloadChunk
from policies.bundle import Policy
from replicas.batch_energy import Cost
from replicas.protocol import EnergyTotals
from replicas.step_time import StepWork

__all__ = ["SimulationResult", "StalledError", "simulate"]

_IDLE_TICK_S = 1.0
"""Decisions are also due without an event, because a guard band lapses with time."""

_MOST_IDLE_TICKS = 1000


class StalledError(RuntimeError):
    """Requests wait, every replica is idle, and the policy still dispatches nothing."""


def simulate(
    policy: Policy,
    workload: Iterable[WorkloadChunk],
    fleet: FleetSpec,
    *,
    rows: RowSink | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    sample_s: float | None = None,
) -> SimulationResult:
    """Run a workload to its end. Equal arguments give equal results, to the last bit.

    Args:
        policy: What the scheduler decides with.
        workload: The requests, in order of arrival.
        fleet: The replicas.
        rows: Receives the finished requests in batches.
        rows_at_once: Size of these batches; a workload that learns from them wants them small.
        sample_s: Seconds between the samples of the timeline.

    Raises:
        WorkloadError: A chunk begins before the one before it ends.
        StalledError: The policy leaves requests waiting for ever.
    """
    source = None if fleet.power is None else fleet.power.source
    buffer = RowBuffer(rows, rows_at_once, energy_source=source)
    return _Simulation(policy, workload, fleet, buffer, sample_s).run()


class _Simulation:
    def __init__(
        self,
        policy: Policy,
        workload: Iterable[WorkloadChunk],
        fleet: FleetSpec,
        rows: RowBuffer,
        sample_s: float | None,
    ) -> None:
        # The replicas are equal: what differs between them is what they have to do.
        self._scheduler = ClusterScheduler(
            policy, refine_after=fleet.refine_after, avoid_slow=False
        )
        self._fleet = fleet
        self._rows = rows
        self._sampler = TimelineSampler(sample_s)
        self._arrivals = arrivals(workload)
        self._next = next(self._arrivals, None)
        self._replicas = {
            r.replica.replica_id: r
            for r in (VirtualReplica(i, fleet, policy) for i in range(fleet.replicas))
        }
        for virtual in self._replicas.values():
            self._scheduler.replica_joined(virtual.replica, 0.0)
        self._live: dict[str, LiveRequest] = {}
        self._events: list[tuple[float, int, int, VirtualReplica]] = []
        self._travelling: deque[tuple[float, Dispatch | Recall]] = deque()
        # By the time of the latest report, oldest first.
        self._reported: OrderedDict[str, float] = OrderedDict.fromkeys(self._replicas, 0.0)
        self._ready: dict[str, VirtualReplica] = {}
        self._reports_s = math.inf
        self._quickest_step_s = fleet.step_time.seconds(StepWork(0, 0, 1, 1))
        self._patient_until_s = 0.0
        self._now = 0.0
        self._finished_s = 0.0
        self._waiting_seconds = 0.0
        self._peak_waiting = self._finished = self._refused = 0
        self._prompt_tokens = self._output_tokens = 0
        self._evictions = self._recomputed_tokens = self._wasted_tokens = 0
        self._cost = Cost()
        self._decisions = self._dispatches = 0

    def run(self) -> SimulationResult:
        idle_ticks = 0
        while (now := self._next_event_s()) is not None:
            waiting = self._scheduler.waiting
            self._waiting_seconds += waiting * (now - self._now)
            self._now = now
            reports_due = now >= self._reports_s
            changed = self._complete_due(now)
            self._hand_over(now)
            changed |= self._arrive(now)
            if self._scheduler.pending and (changed or reports_due):
                self._decide(now)
            while self._begin_ready(now):
                self._decide(now)
            if now >= self._sampler.due_s:
                self._sample(now)
            under_way = self._events or self._travelling or not self._scheduler.waiting
            idle_ticks = 0 if under_way else idle_ticks + 1
            if idle_ticks > _MOST_IDLE_TICKS:
                raise StalledError(
                    f"{self._scheduler.waiting} requests wait at {now:.3f} s, all replicas are "
                    f"idle, and policy {self._scheduler.policy.name!r} dispatches none of them"
                )
        self._rows.flush()
        return self._result()

    def _next_event_s(self) -> float | None:
        """Time of the next event; None when all is done."""
        events = self._events
        while events and events[0][2] != events[0][3].version:
            heapq.heappop(events)
        self._reports_s = self._next_reports_s() if self._scheduler.pending else math.inf
        now = self._reports_s
        if events:
            now = min(now, events[0][0])
        if self._next is not None:
            now = min(now, self._next[0].arrival_s)
        if self._travelling:
            now = min(now, self._travelling[0][0])
        return None if now == math.inf else now

    def _next_reports_s(self) -> float:
        """When the replicas report next: the projection moves on while requests wait.

        Reports that cannot let anybody in are passed over, so that a request costs the same however
        long its answer is.
        """
        interval_s = self._fleet.report_interval_s
        if not self._events:
            return self._now + _IDLE_TICK_S
        if self._patient_until_s == math.inf:
            return math.inf
        if interval_s:
            return (max(self._now, self._patient_until_s) // interval_s + 1) * interval_s
        next_step_s = min(r.batch.next_step_ends_s(self._now) for r in self._replicas.values())
        return max(next_step_s, self._patient_until_s)

    def _complete_due(self, now: float) -> bool:
        """Account for the steps that end now; whether anything calls for a decision."""
        changed = False
        while self._events and self._events[0][0] <= now:
            _, _, version, virtual = heapq.heappop(self._events)
            if version != virtual.version:
                continue
            self._ready[virtual.replica.replica_id] = virtual
            stretch = virtual.complete()
            for request_id in stretch.prefilled:
                live = self._live[request_id]
                if live.first_token_s is None:
                    live.first_token_s = now
            for request_id in stretch.finished:
                self._finish(virtual, request_id, now)
            returned = self._resubmit(virtual, now)
            evicted = virtual.batch.make_room()
            for victim in evicted:
                self._evict(virtual, victim.request_id, victim.tokens, victim.computed, now)
            if stretch.finished or evicted or returned:
                self._report(virtual, now)
                changed = True
        return changed

    def _resubmit(self, virtual: VirtualReplica, now: float) -> bool:
        """Recalled requests go on as their clients' next attempts; whether there were any."""
        returned = virtual.hand_back()
        for back in returned:
            live = self._live[back.request_id]
            live.recomputed_tokens += back.computed
            live.lost_tokens = max(live.lost_tokens, back.computed)
            live.cost += virtual.ended(back.request_id)
            generated = back.tokens - live.request.prompt_tokens
            request = replace(live.request, generated_tokens=generated)
            self._scheduler.submit(request, live.forecast, now, attempt=back.attempt + 1)
        return bool(returned)

    def _finish(self, virtual: VirtualReplica, request_id: str, now: float) -> None:
        live = self._live.pop(request_id)
        output_tokens = live.request.output_tokens
        assert output_tokens is not None
        self._scheduler.finished(virtual.replica.replica_id, request_id, output_tokens, now)
        live.cost += virtual.ended(request_id)
        self._cost += live.cost
        self._rows.add(live, virtual.index, now)
        self._finished += 1
        self._finished_s = now
        self._prompt_tokens += live.request.prompt_tokens
        self._output_tokens += output_tokens
        self._evictions += live.evictions
        self._recomputed_tokens += live.recomputed_tokens

    def _evict(
        self, virtual: VirtualReplica, request_id: str, tokens: int, computed: int, now: float
    ) -> None:
        live = self._live[request_id]
        generated = tokens - live.request.prompt_tokens
        live.evictions += 1
        live.recomputed_tokens += computed
        cost = virtual.evicted(request_id)
        restarts = self._fleet.on_eviction == "restart"
        if restarts:  # all of it was in vain, so that nothing is done again
            cost = Cost(cost.joules, cost.joules)
        else:
            live.lost_tokens = max(live.lost_tokens, computed)
        live.cost += cost
        if virtual.gate is not None:
            return  # it waits in its engine
        self._wasted_tokens += generated if restarts else 0
        kept = 0 if restarts else generated
        self._scheduler.evicted(virtual.replica.replica_id, request_id, generated, now, kept=kept)

    def _arrive(self, now: float) -> bool:
        arrived = False
        while self._next is not None and self._next[0].arrival_s <= now:
            request, forecast = self._next
            index = int(request.request_id)
            try:
                self._scheduler.submit(request, forecast, now, place=index + 1)
            except ImpossibleRequestError:
                self._refused += 1
            else:
                self._live[request.request_id] = LiveRequest(index, request, forecast)
                arrived = True
            self._next = next(self._arrivals, None)
        self._peak_waiting = max(self._peak_waiting, self._scheduler.waiting)
        return arrived

    def _decide(self, now: float) -> None:
        self._report_stale(now)
        self._decisions += 1
        for action in self._scheduler.decide(now):
            if isinstance(action, Dispatch):
                self._dispatches += 1
                live = self._live[action.request.request_id]
                if live.dispatched_s is None:
                    live.dispatched_s = now
            else:
                assert action.to, "nothing here cancels or supersedes"
            self._travelling.append((now + self._fleet.dispatch_latency_s, action))
        self._hand_over(now)
        patience = self._scheduler.patience(now)
        # Counted from reports that may be as old as the interval.
        wait_s = patience * self._quickest_step_s - self._fleet.report_interval_s
        self._patient_until_s = math.inf if patience == NEVER else now + wait_s

    def _hand_over(self, now: float) -> None:
        """Decisions that have reached their replicas by now are carried out."""
        while self._travelling and self._travelling[0][0] <= now:
            _, action = self._travelling.popleft()
            virtual = self._replicas[action.replica_id]
            if isinstance(action, Recall):
                virtual.recall(action.request_id)
            else:
                live = self._live[action.request.request_id]
                virtual.add(action, live.evictions, live.lost_tokens)
            if virtual.planned:
                self._expect(virtual, virtual.cut(now))
            else:
                self._ready[action.replica_id] = virtual

    def _report_stale(self, now: float) -> None:
        """Replicas whose latest report is too old report."""
        oldest = now - self._fleet.report_interval_s
        while True:
            replica_id, reported_s = next(iter(self._reported.items()))
            if reported_s > oldest or reported_s == now:
                return
            self._report(self._replicas[replica_id], now)

    def _report(self, virtual: VirtualReplica, now: float) -> None:
        replica_id = virtual.replica.replica_id
        self._reported[replica_id] = now
        self._reported.move_to_end(replica_id)
        generated = virtual.batch.generated(now)
        if generated:
            self._scheduler.progressed(replica_id, generated, now)

    def _begin_ready(self, now: float) -> bool:
        """Begin the next steps; whether that has changed who waits inside engines."""
        changed = False
        ready, self._ready = self._ready, {}
        for replica_id, virtual in ready.items():
            if virtual.batch.has_work:
                self._expect(virtual, virtual.begin(now))
            if (stalls := virtual.stalls()) is not None:
                self._scheduler.stalled(replica_id, stalls, now)
                changed = True
        return changed

    def _expect(self, virtual: VirtualReplica, ends_s: float) -> None:
        heapq.heappush(self._events, (ends_s, virtual.index, virtual.version, virtual))

    def _sample(self, now: float) -> None:
        fleet = self._scheduler.fleet
        self._sampler.add(
            now,
            self._scheduler.waiting,
            self._scheduler.running,
            sum(virtual.batch.used_blocks for virtual in self._replicas.values()),
            sum(ledger.profile.peak for ledger in fleet),
        )

    def _result(self) -> SimulationResult:
        replicas = self._replicas.values()
        makespan_s = self._finished_s
        capacity_blocks = self._fleet.limits.kv_blocks * len(replicas)
        busy_s = math.fsum(r.busy_s for r in replicas)
        uncovered_s = math.fsum(r.uncovered_s for r in replicas)
        block_seconds = math.fsum(r.block_seconds for r in replicas)
        return SimulationResult(
            policy=self._scheduler.policy.name,
            step_time=self._fleet.step_time.name,
            replicas=len(replicas),
            capacity_blocks=capacity_blocks,
            finished=self._finished,
            refused=self._refused,
            makespan_s=makespan_s,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            evictions=self._evictions,
            recomputed_tokens=self._recomputed_tokens,
            wasted_tokens=self._wasted_tokens,
            busy_s=busy_s,
            uncovered_share=uncovered_s / busy_s if busy_s else 0.0,
            mean_waiting=self._waiting_seconds / makespan_s if makespan_s else 0.0,
            peak_waiting=self._peak_waiting,
            mean_memory_share=(
                block_seconds / (capacity_blocks * makespan_s) if makespan_s else 0.0
            ),
            peak_memory_blocks=max(r.peak_blocks for r in replicas),
            decisions=self._decisions,
            dispatches=self._dispatches,
            timeline=self._sampler.timeline(),
            energy=self._energy(),
        )

    def _energy(self) -> EnergyTotals | None:
        power, until_s = self._fleet.power, self._finished_s
        if power is None:
            return None
        drawn = [r.energy.metered_joules(until_s) for r in self._replicas.values() if r.energy]
        metered_joules = math.fsum(drawn)
        return EnergyTotals(
            source=power.source,
            metered_joules=metered_joules,
            request_joules=self._cost.joules,
            wasted_joules=self._cost.wasted_joules,
            idle_joules=power.power.idle_w * until_s * len(drawn),
        )
