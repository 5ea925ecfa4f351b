"""The simulated replicas of the studies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

from cluster.virtual_replica import FleetSpec
from replicas.batch_limits import BatchLimits
from replicas.silicon_tables import Deployment, load_silicon_step_time, silicon_limits
from replicas.step_time import LinearStepTime

DEPLOYMENT = Deployment("a100_sxm", "meta-llama/Meta-Llama-3.1-8B")
SILICON, LINEAR = "silicon", "linear"

_DECLARED = LinearStepTime(
    base_s=0.010,
    per_prefill_token_s=60e-6,
    per_decode_token_s=30e-6,
    per_kv_token_s=80e-9,
)
_DECLARED_LIMITS = BatchLimits(
    kv_blocks=27_000, block_size=16, max_num_seqs=256, max_num_batched_tokens=8192
)


@dataclass(frozen=True, slots=True)
class Regime:
    """What the replicas run out of first.

    Attributes:
        label: For the page.
        kv_blocks: KV blocks of a replica; None is all that the GPU has left.
    """

    label: str
    kv_blocks: int | None


REGIMES = {
    "slots": Regime("slots bind", None),
    "memory": Regime("memory binds", 2_500),
}
"""An 8B model leaves a large GPU more KV cache than 256 answers of this kind need; the second
regime has the KV cache that a larger model, longer prompts or a smaller GPU leave."""


def step_time_source() -> str:
    """`silicon` where the kernel measurements are installed, else `linear`."""
    return SILICON if find_spec("aiconfigurator_core") else LINEAR


def fleet_of(regime: str, replicas: int, step_time: str) -> FleetSpec:
    """Replicas of one regime.

    Args:
        regime: One of `REGIMES`.
        replicas: How many.
        step_time: `silicon` or `linear`.
    """
    silicon = step_time == SILICON
    limits = silicon_limits(DEPLOYMENT) if silicon else _DECLARED_LIMITS
    blocks = REGIMES[regime].kv_blocks
    return FleetSpec(
        replicas=replicas,
        limits=limits if blocks is None else replace(limits, kv_blocks=blocks),
        step_time=load_silicon_step_time(DEPLOYMENT) if silicon else _DECLARED,
    )


def step_time_sentence(step_time: str) -> str:
    """Where step times come from, for the page."""
    if step_time == SILICON:
        return (
            f"Step times are interpolated between kernels measured on the GPU "
            f"({load_silicon_step_time(DEPLOYMENT).label})."
        )
    return (
        "Step times are declared, not measured (linear in the work of a step), because the kernel "
        "measurements (`aiconfigurator-core`) were not installed."
    )
