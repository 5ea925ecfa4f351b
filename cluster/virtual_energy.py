"""The energy of a virtual replica by a declared power model, and what its requests cost."""

from __future__ import annotations

from replicas.batch_energy import BatchEnergy
from replicas.power_model import ModelledDevice
from replicas.step_time import LinearStepTime
from replicas.stretch import Stretch


class VirtualEnergy:
    """What a virtual replica draws.

    Attributes:
        device: Its power model.
        requests: What is booked to its requests.
        busy_s: Seconds that it computed.
        busy_joules: Energy that it took meanwhile, idle power included.
    """

    def __init__(self, device: ModelledDevice, weights: LinearStepTime) -> None:
        self.device = device
        self.requests = BatchEnergy(weights)
        self.busy_s = 0.0
        self.busy_joules = 0.0

    def book(self, stretch: Stretch) -> None:
        """Some steps have ended; before any of their requests leaves the batch."""
        tokens = stretch.work.prefill_tokens + stretch.steps * stretch.work.decode_tokens
        joules = self.device.joules(tokens, stretch.duration_s)
        self.busy_s += stretch.duration_s
        self.busy_joules += joules
        self.requests.book(stretch, joules - self.device.power.idle_w * stretch.duration_s)

    def metered_joules(self, until_s: float) -> float:
        """All that it has drawn since time 0, without work until then.

        Args:
            until_s: Seconds, no earlier than its last step's end.
        """
        return self.busy_joules + self.device.power.idle_w * (until_s - self.busy_s)
