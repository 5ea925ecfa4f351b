"""Who in an engine gives up memory, as an eviction policy sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listing
from dataclasses import replace
from operator import attrgetter

import numpy as np

from policies.batch import RequestBatch
from policies.eviction import Eviction, choose_victims
from replicas.decoding_set import Sequence


def victims(
    eviction: Eviction,
    running: Listing[Sequence],
    clock: int,
    blocks_of: Callable[[int], int],
    excess: int,
) -> list[Sequence]:
    """The requests that are evicted so that `excess` blocks become free after the next step.

    Ties go by id, so that a run can be reproduced whatever order requests started in.

    Args:
        eviction: The policy.
        running: Requests that hold blocks.
        clock: That of the decoding set.
        blocks_of: Blocks that hold a number of computed tokens.
        excess: Blocks to free, at least 1.
    """
    by_id = sorted(running, key=attrgetter("request_id"))
    started = np.array([float(s.started) for s in by_id])
    sizes = np.array(list(blocks_freed(by_id, clock, blocks_of).values()))
    keys = eviction.keys(columns(by_id, clock), started)
    return [by_id[i] for i in choose_victims(keys, sizes, excess).tolist()]


def blocks_freed(
    running: Iterable[Sequence], clock: int, blocks_of: Callable[[int], int]
) -> dict[str, int]:
    """Blocks that are free after the next step if one of these requests is evicted, by id."""
    return {
        s.request_id: blocks_of((s.offset + clock if s.joined else s.computed) + 1) for s in running
    }


def columns(sequences: Listing[Sequence], clock: int) -> RequestBatch:
    """What policies see of these requests at this moment."""
    requests, forecasts, generated = [], [], []
    for sequence in sequences:
        assert sequence.request is not None
        assert sequence.forecast is not None, "an eviction needs requests with their forecasts"
        generated.append(tokens_at(sequence, clock) - sequence.request.prompt_tokens)
        requests.append(sequence.request)
        forecasts.append(sequence.forecast)
    return replace(
        RequestBatch.of(requests, forecasts), generated_tokens=np.array(generated, np.int64)
    )


def tokens_at(sequence: Sequence, clock: int) -> int:
    """Prompt and output tokens that exist of a request at this moment."""
    return sequence.offset + clock + 1 if sequence.joined else sequence.tokens
