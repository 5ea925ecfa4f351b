"""Which engine a replica runs, as a message."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from replicas.detect_meter import MeterChoice
from replicas.protocol import Engine, EngineStartError


class EngineSpec(msgspec.Struct, frozen=True):
    """How to build an engine.

    Attributes:
        kind: `vllm` or `simulated`.
        model: Folder or name of the model.
        args: `vllm.AsyncEngineArgs` or `SimulatedEngineOptions` as keyword arguments.
        energy: How its energy is measured.
    """

    kind: Literal["vllm", "simulated"]
    model: str
    args: dict[str, Any] = {}
    energy: MeterChoice = MeterChoice()


def make_engine(spec: EngineSpec, cpu_cores: list[int]) -> Engine:
    """The engine of a specification, not yet started.

    Raises:
        EngineStartError: An option is unknown or out of range.
    """
    try:
        if spec.kind == "simulated":
            from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions

            return SimulatedEngine(SimulatedEngineOptions(model=spec.model, **spec.args))
        from replicas.vllm_engine import VllmEngine, VllmEngineOptions

        return VllmEngine(VllmEngineOptions(spec.model, spec.args, cpu_cores))
    except (TypeError, ValueError) as error:
        raise EngineStartError(f"{spec.kind} engine: {error}") from error
