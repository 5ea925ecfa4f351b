"""Lower bounds that evictions taught, which no later forecast goes below."""

from __future__ import annotations

from policies.eviction import Eviction, after_eviction
from policies.forecast import Forecast
from policies.request import Request


class LearnedBounds:
    """The bound of each request that was evicted, until it has ended."""

    def __init__(self, eviction: Eviction) -> None:
        self._eviction = eviction
        self._lower: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._lower)

    def bounded(self, request: Request, forecast: Forecast) -> Forecast:
        """The forecast with what is known of the request: it has got so far already."""
        learned = self._lower.get(request.request_id, 0)
        return forecast.at_least(max(request.generated_tokens, learned))

    def evicted(
        self, request: Request, forecast: Forecast, tokens: int
    ) -> tuple[Request, Forecast]:
        """A request was evicted at `tokens` output tokens; it and its forecast from then on."""
        reached, forecast = after_eviction(self._eviction, request, forecast, tokens)
        self._lower[request.request_id] = forecast.lower
        return reached, forecast

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._lower.pop(request_id, None)
