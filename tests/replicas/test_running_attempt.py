from __future__ import annotations

from replicas.protocol import Delta, Generation, Stalled, pack_tokens
from replicas.running_attempt import RunningAttempt


def test_what_was_counted_stays_counted_when_the_attempt_ends_in_an_error() -> None:
    """The delta of an error is made by whoever met it, and knows of nothing else."""
    attempt = RunningAttempt(Generation("r", "c", pack_tokens([1])), accepted_s=1.0)
    attempt.produced(Delta("r", token_ids=[7, 8], preemptions=1, recomputed_tokens=9))
    attempt.stalled(Stalled(tokens=2, evictions=2))
    error = Delta("r", finish_reason="error", error="no more")
    attempt.produced(error)
    finished = attempt.finished(error, 3.0, None)
    assert (finished.preemptions, finished.recomputed_tokens) == (2, 9)
    assert (finished.output_tokens, finished.running_s) == (2, 2.0)
