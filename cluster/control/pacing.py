"""Offline work paced to the configured power cap, by what the replicas report."""

from __future__ import annotations

import logging

from cluster.control.controller_state import ControllerState
from cluster.control.power_cap import PowerCap, PowerReading

logger = logging.getLogger(__name__)

UNMETERED_S = 10.0
"""How long replicas may serve without telling their power before it is complained of."""


class Pacing:
    """Keeps the cluster's power under `energy.power_cap_w`, where there is one.

    Args:
        state: The controller's; what it has adopted goes on.
    """

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._cap: PowerCap | None = None
        self._pace: int | None = None
        self._unmetered_since_s: float | None = None
        self._complained = False
        if (cap_w := state.config.energy.power_cap_w) is not None:
            self._cap = PowerCap(cap_w, running=state.scheduler.offline_running)

    def look(self, now: float) -> None:
        """Pace by the power of now; about once a second, and once before the first decision."""
        if self._cap is None:
            return
        reading = self._reading()
        pace = self._cap.look(now, reading)
        if pace != self._pace:
            self._pace = pace
            self._state.scheduler.pace_offline(pace, now)
            self._state.wake.set()
        self._complain(self._cap, reading, now)

    def _reading(self) -> PowerReading | None:
        energy, scheduler = self._state.energy, self._state.scheduler
        power_w, idle_w = energy.power_w, energy.idle_w
        if power_w is None or idle_w is None:
            return None
        return PowerReading(power_w, idle_w, scheduler.running, scheduler.offline_running)

    def _complain(self, cap: PowerCap, reading: PowerReading | None, now: float) -> None:
        """Say once why offline work stands still, when the cap cannot be kept otherwise."""
        if reading is not None:
            self._unmetered_since_s = None
        if self._complained or not len(self._state.scheduler.fleet):
            return
        if reading is None:
            if self._unmetered_since_s is None:
                self._unmetered_since_s = now
            if now - self._unmetered_since_s >= UNMETERED_S:
                self._complained = True
                logger.error(
                    "energy.power_cap_w is %g W, but the replicas' power is not measured: offline "
                    "work stays at %d requests at once; make the hardware's counters readable, "
                    "declare energy.power_model, or take the cap off",
                    cap.cap_w,
                    cap.most_running,
                )
        elif reading.idle_w >= cap.cap_w:
            self._complained = True
            logger.error(
                "energy.power_cap_w is %g W, but the replicas take %.0f W without work: no offline "
                "work is started; raise the cap or have fewer replicas",
                cap.cap_w,
                reading.idle_w,
            )
