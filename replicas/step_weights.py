"""How much time each part of an engine step's work takes, whatever model predicts the steps."""

from __future__ import annotations

import itertools

import numpy as np

from replicas.batch_limits import BatchLimits
from replicas.calibration import fit
from replicas.step_time import LinearStepTime, StepTimeModel, StepWork, UnitStepTime

_CONTEXTS = (32, 256, 1024, 4096)
_CHUNKS = (0, 32, 256, 1024, 4096)
_BEFORE = (0, 1024)


def weights_of(step_time: StepTimeModel, limits: BatchLimits) -> LinearStepTime:
    """A linear step time to share energy by (see `StepShares`).

    One that is linear stands for itself; to another one is fitted, on steps within the limits.

    Args:
        step_time: Predicts the steps.
        limits: What a step can compute.
    """
    if isinstance(step_time, LinearStepTime):
        return step_time
    if isinstance(step_time, UnitStepTime):
        return LinearStepTime(1.0, 0.0, 0.0, 0.0)
    batches = (0, *_doubling(limits.max_num_seqs))
    steps = []
    for decodes, context, chunk, before in itertools.product(batches, _CONTEXTS, _CHUNKS, _BEFORE):
        tokens = min(chunk, limits.max_num_batched_tokens - decodes)
        if not tokens and (not decodes or before):
            continue
        pairs = tokens * before + tokens * (tokens + 1) // 2
        work = StepWork(tokens, pairs, decodes, decodes * context)
        steps.append((step_time.seconds(work), *work))
    return fit(np.array(steps, np.float64)).step_time


def _doubling(most: int) -> list[int]:
    return [*(1 << i for i in range(most.bit_length() - 1)), most]
