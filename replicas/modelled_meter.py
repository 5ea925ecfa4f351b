"""A meter that computes what it reads from what the engine does."""

from __future__ import annotations

from collections.abc import Sequence

from replicas.energy import EnergyMeter
from replicas.power_model import ModelledDevice
from replicas.request_work import EngineStep


class ModelledMeter(EnergyMeter):
    """Counts the energy that a declared power model gives to the engine's steps and to idle time.

    Time is the engine's. A step that is under way is not known, so that its time counts as idle
    first. A total cannot fall: once the step is told, as much of the idle time that follows is left
    out.

    Args:
        device: The power model of the replica's devices.
    """

    def __init__(self, device: ModelledDevice) -> None:
        self.source = device.source
        self.idle_w = device.power.idle_w
        self._device = device
        self._began_s: float | None = None
        self._busy_s = 0.0
        self._idle_s = 0.0
        self._busy_joules = 0.0

    def worked(self, steps: Sequence[EngineStep], at_s: float) -> None:
        """See `EnergyMeter.worked`."""
        if self._began_s is None:
            self._began_s = at_s
        for step in steps:
            self._busy_s += step.seconds
            self._busy_joules += self._device.joules(step.tokens, step.seconds)
        self._idle_s = max(self._idle_s, at_s - self._began_s - self._busy_s)

    def total_joules(self) -> float | None:
        """See `EnergyMeter.total_joules`; None before the engine has told anything."""
        if self._began_s is None:
            return None
        return self._busy_joules + self._device.power.idle_w * self._idle_s
