"""What a replica reports to the controller: counts, what waits in its engine, what ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray

from replicas.metering import Metering
from replicas.protocol import Engine, EngineLoad, Finished, ReplicaReport, Stalled
from replicas.running_attempt import RunningAttempt

REPORT_INTERVAL_S = 0.25
"""How often progress is reported."""

ENERGY_INTERVAL_S = 1.0
"""How often energy is reported while there is nothing else to say."""


class Reports:
    """Reports at once what ended, and otherwise a few times a second what changed.

    One call at a time; what the controller has not received is sent again.

    Args:
        replica_id: Who reports.
        controller: To whom.
        engine: The replica's.
        metering: The replica's.
        requests: What runs on the replica, by id; kept by the replica.
    """

    def __init__(
        self,
        replica_id: str,
        controller: Any,
        engine: Engine,
        metering: Metering,
        requests: Mapping[str, RunningAttempt],
    ) -> None:
        self._replica_id = replica_id
        self._controller = controller
        self._engine = engine
        self._metering = metering
        self._requests = requests
        self._finished: list[Finished] = []
        self._due = asyncio.Event()
        self._progress_due = False
        self._energy_reported_s = 0.0
        self._reported: tuple[dict[str, int], dict[str, Stalled], EngineLoad] | None = None

    def ended(self, finished: Finished) -> None:
        """Report at once that a request ended."""
        self._finished.append(finished)
        self._due.set()

    def progressed(self) -> None:
        """Report at once how far all requests are."""
        self._progress_due = True
        self._due.set()

    def begin_again(self) -> None:
        """Report everything: whoever listens now knows nothing."""
        self._reported = None
        self.progressed()

    def stalled(self) -> dict[str, Stalled]:
        """The requests of ours that wait inside the engine."""
        stalled = {i: state for i, state in self._engine.stalled().items() if i in self._requests}
        for request_id, state in stalled.items():
            self._requests[request_id].stalled(state)
        return stalled

    async def forever(self) -> None:
        """Report until cancelled."""
        reported_s = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._due.wait()
            self._due.clear()
            progress: dict[str, int] = {}
            if self._progress_due or time.monotonic() - reported_s >= REPORT_INTERVAL_S:
                self._progress_due = False
                progress = {i: r.output_tokens for i, r in self._requests.items()}
            state = progress, self.stalled(), self._engine.load()
            if not (self._finished or state != self._reported or self._energy_is_due):
                continue
            finished, self._finished = self._finished, []
            try:
                await self._controller.report.remote(self._report(*state, finished))
                self._reported = state
                self._energy_reported_s = time.monotonic()
                if progress:
                    reported_s = time.monotonic()
            except ray.exceptions.RayError:
                # The controller is away or being restarted.
                self._finished = finished + self._finished
                await asyncio.sleep(REPORT_INTERVAL_S)
                self._due.set()

    @property
    def _energy_is_due(self) -> bool:
        is_metered = self._metering.totals.metered_joules > 0
        return is_metered and time.monotonic() - self._energy_reported_s >= ENERGY_INTERVAL_S

    def _report(
        self,
        progress: dict[str, int],
        stalled: dict[str, Stalled],
        load: EngineLoad,
        finished: list[Finished],
    ) -> ReplicaReport:
        return ReplicaReport(
            replica_id=self._replica_id,
            progress=progress,
            finished=finished,
            load=load,
            energy=self._metering.totals,
            sent_s=time.time(),
            stalled=stalled,
        )
