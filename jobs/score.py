"""`tiebreak score`: what one forecast is worth to the orderings."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from cluster.config import ConfigError
from policies.batch import RequestBatch
from policies.forecast import Forecast
from policies.ordering import KvVolume, QueueState, Sept, Tie
from policies.request import Request

console = Console()

LARGEST_MU = 50.0
"""Above any length that exists; the exponential of much more overflows."""
LARGEST_TOKENS = 1 << 31


def score(
    mu: Annotated[float, typer.Option(help="Location of ln X, X the output length in tokens.")],
    sigma: Annotated[float, typer.Option(help="t scale of ln X; 0 is a point forecast.")],
    cap: Annotated[int, typer.Option(help="The request's max_tokens, which censors X.")],
    prompt_tokens: Annotated[int, typer.Option(help="Prompt length, for the KV volume.")] = 0,
    waiting: Annotated[int, typer.Option(help="Requests in the queue; sets beta.")] = 0,
    slots: Annotated[int, typer.Option(help="Sum of max_num_seqs; sets beta.")] = 1,
    report_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the scores of one forecast, without ageing; the lowest score runs first."""
    scores = score_forecast(mu, sigma, cap, prompt_tokens, QueueState(waiting, slots))
    if report_json:
        console.print_json(data=scores)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("score", "value", "unit"):
        table.add_column(name, justify="right" if name == "value" else "left")
    units = dict.fromkeys(("expectation", "cvar", "tie"), "tokens")
    units |= {"beta": "", "kv_volume": "tokens x steps"}
    for name, value in scores.items():
        table.add_row(name, f"{value:,.4f}", units[name])
    console.print(table)


def score_forecast(
    mu: float, sigma: float, cap: int, prompt_tokens: int, queue: QueueState
) -> dict[str, float]:
    """Unaged scores of one request, from the orderings' own classes.

    Args:
        mu: Location of ln X.
        sigma: Scale of ln X.
        cap: Cap on output tokens.
        prompt_tokens: Prompt length.
        queue: The queue at the moment of scoring.

    Returns:
        `expectation` E[X~] and `cvar` CVaR_0.9[X~] in tokens, `beta`, `tie` in tokens and
        `kv_volume` in tokens times steps.

    Raises:
        ConfigError: A value is out of range.
    """
    _require_range("mu", mu, -LARGEST_MU, LARGEST_MU)
    _require_range("sigma", sigma, 0, LARGEST_MU)
    _require_range("cap", cap, 1, LARGEST_TOKENS)
    _require_range("prompt-tokens", prompt_tokens, 0, LARGEST_TOKENS)
    _require_range("waiting", queue.waiting, 0, LARGEST_TOKENS)
    _require_range("slots", queue.slots, 1, LARGEST_TOKENS)
    request = Request("scored", prompt_tokens, cap)
    batch = RequestBatch.of([request], [Forecast(mu, sigma, lower=1, upper=cap)])
    tie = Tie()

    def only(values: np.ndarray) -> float:
        return float(values[0])

    return {
        "expectation": only(Sept().scores(batch, queue)),
        "cvar": only(tie.moments(batch).tail_mean),
        "beta": tie.beta(queue),
        "tie": only(tie.scores(batch, queue)),
        "kv_volume": only(KvVolume().scores(batch, queue)),
    }


def _require_range(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(f"--{name} is {value:g}, must be a number in {least:g}..{most:g}")
