"""Keeps a replica's energy account: reads the meter, and asks the engine what it has done."""

from __future__ import annotations

import asyncio
import logging

from replicas.calibration import fit
from replicas.energy import EnergyMeter, NullMeter
from replicas.energy_account import EnergyAccount, RequestEnergy
from replicas.protocol import EnergyTotals, Engine, Generation
from replicas.request_work import Worked
from replicas.step_time import LinearStepTime, StepTimeError

logger = logging.getLogger(__name__)

READ_INTERVAL_S = 0.1
"""How often the meter is read."""

FRESH_S = 0.05
"""Age up to which a reading does for a request that ends."""

FIRST_FIT_STEPS = 400
"""Measured steps from which the weights of work come from them; again at each tenfold number."""


class Metering:
    """The energy account of one replica, kept up to date. Nothing happens where nothing is metered.

    Args:
        meter: The replica's; closed by `close`.
        engine: The replica's.
        idle_w: Watts without work; None: the meter's, else the lowest seen.
    """

    def __init__(self, meter: EnergyMeter, engine: Engine, idle_w: float | None = None) -> None:
        self._meter = meter
        self._engine = engine
        self._account = EnergyAccount(meter.source, meter.idle_w if idle_w is None else idle_w)
        self._is_metered = not isinstance(meter, NullMeter)
        self._steps = 0
        self._fit_at = FIRST_FIT_STEPS
        self._read_s = 0.0
        self._meter_fails = False
        self.read()

    @property
    def totals(self) -> EnergyTotals:
        """The books after the latest reading."""
        return self._account.totals

    @property
    def weights(self) -> LinearStepTime:
        """What work is weighed by."""
        return self._account.weights

    def begin(self, generation: Generation) -> None:
        """A request is given to the engine."""
        if self._is_metered:
            continued = generation.generated_tokens > 0
            self._account.begin(generation.request_id, continued=continued)

    def end(self, request_id: str) -> RequestEnergy | None:
        """What a request has cost, which has ended; None: not measured."""
        if not self._is_metered:
            return None
        if asyncio.get_running_loop().time() - self._read_s > FRESH_S:
            self.read()
        return self._account.end(request_id)

    def read(self) -> None:
        """Book what was metered and done since the last reading."""
        if not self._is_metered:
            return
        worked = self._engine.worked()
        self._steps += len(worked.steps)
        self._account.read(self._joules(worked), worked)
        self._read_s = asyncio.get_running_loop().time()

    def _joules(self, worked: Worked) -> float | None:
        """The meter's total. One that fails has not answered, and may answer again."""
        try:
            self._meter.worked(worked.steps, worked.at_s)
            joules = self._meter.total_joules()
        except Exception:
            if not self._meter_fails:
                logger.exception("the energy meter %s fails", self._meter.source)
            self._meter_fails = True
            return None
        self._meter_fails = False
        return joules

    async def forever(self) -> None:
        """Read until cancelled."""
        while self._is_metered:
            await asyncio.sleep(READ_INTERVAL_S)
            self.read()
            await self._weigh()

    async def _weigh(self) -> None:
        """Fit the weights of work to the engine's own steps, once there are enough of them."""
        if self._steps < self._fit_at:
            return
        self._fit_at *= 10
        try:
            calibration = await asyncio.to_thread(fit, self._engine.steps())
        except StepTimeError as error:
            self._fit_at = 2 * self._steps
            logger.debug("the weights of work stay as they are: %s", error)
        else:
            self._account.weights = calibration.step_time

    def close(self) -> None:
        """Release the meter."""
        self._meter.close()
