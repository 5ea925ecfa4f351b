"""The requests of a workload as they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from cluster.workload import WorkloadChunk, WorkloadError
from policies.forecast import Forecast
from policies.request import Request, RequestClass


def arrivals(workload: Iterable[WorkloadChunk]) -> Iterator[tuple[Request, Forecast]]:
    """Requests with their forecasts, one by one; ids are their numbers.

    Raises:
        WorkloadError: A chunk begins before the one before it ends.
    """
    index = 0
    latest_s = -math.inf
    for chunk in workload:
        if len(chunk) and chunk.arrival_s[0] < latest_s:
            raise WorkloadError(
                f"request {index} arrives at {chunk.arrival_s[0]} s, before the one before it at "
                f"{latest_s} s: chunks must be in order of arrival"
            )
        places = range(index, index + len(chunk))
        numbers = places if chunk.number is None else chunk.number.tolist()
        columns = (
            chunk.arrival_s,
            chunk.prompt_tokens,
            chunk.max_tokens,
            chunk.output_tokens,
            chunk.request_class,
            chunk.mu,
            chunk.sigma,
            chunk.lower,
            chunk.upper,
        )
        for number, arrival, prompt, cap, output, kind, mu, sigma, lower, upper in zip(
            numbers, *(column.tolist() for column in columns), strict=True
        ):
            # Fixed width, so that ids sort as numbers do.
            request = Request(
                f"{number:09d}",
                prompt,
                cap,
                arrival,
                RequestClass(kind),
                output_tokens=output,
            )
            yield request, Forecast(mu, sigma, lower, upper, "simulated")
        if len(chunk):
            index += len(chunk)
            latest_s = float(chunk.arrival_s[-1])
