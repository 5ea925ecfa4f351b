"""The section of the page about trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.papers.fleets import REGIMES, step_time_sentence
from jobs.papers.markdown import percent, spread, table
from jobs.papers.study import Cell, Pairs, Result, Section

_ARMS: Mapping[str, str] = {
    "fcfs": "FCFS",
    "random": "tiebreak, forecasts exchanged at random",
    "prior": "tiebreak, prior",
    "learned": "tiebreak, learned",
    "oracle": "tiebreak, true distributions",
    "exact": "tiebreak, true lengths",
}


def write(pairs: Pairs) -> Section:
    """The section."""
    linear = next(r for c, r in pairs if c["part"] == "linear")
    networks = [(c, r) for c, r in pairs if c["part"] == "network"]
    loops = [(c, r) for c, r in pairs if c["part"] == "loop"]
    return Section(
        "\n\n".join((_what(networks), _ranks(linear, networks), _rest(networks), _loop(loops)))
    )


def _what(networks: Pairs) -> str:
    first = next(iter(networks[0][1].values()))
    return f"""\
`python -m jobs.papers --study forecasts`. Heads on the frozen all-MiniLM-L6-v2 (default settings
of `tiebreak train`) learn from CASTILLO's `train.parquet` and are scored by `tiebreak evaluate`
on its `validate.parquet`: {first["prompts"]:,} prompts of the first model, one of them, by its
text, in training too, and more than a third of them from data sets (Dolly, ShareGPT) that
training has no prompt of. In training twelve of the thirteen models answer code tasks only,
Mixtral also Alpaca's instructions: what is asked here is transfer, between models and between
kinds of prompts. *Its own test side* is the tenth of `train.parquet` that was kept out of
training by the prompt's text: the kinds of prompts are then those of the training. tau is
Kendall's between E[min(X, cap)] and one realised
length, the mean over ten; another sample's median has 0.78."""


def _ranks(linear: Result, networks: Pairs) -> str:
    names = list(networks[0][1])
    head = ["trained on", *(f"{name}: {what}" for name in names for what in ("R2 mu", "tau"))]
    rows = [["lexical features, linear, all thirteen", *score_cells(linear, names)]]
    rows += [[_name(cell), *score_cells(result, names)] for cell, result in networks]
    return table(head, rows)


def _name(cell: Cell) -> str:
    on = cell.get("scored_on")
    return f"{cell['name']} ({on})" if on else str(cell["name"])


def score_cells(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """R2 of mu and tau of each of these models, empty where there are none."""
    cells = []
    for name in names:
        scores = result.get(name)
        cells += [f"{scores['r2_mu']:.2f}", f"{scores['kendall_tau']:.2f}"] if scores else ["", ""]
    return cells


def _rest(networks: Pairs) -> str:
    head = [
        "trained on, scored on",
        "NLL",
        "prior's",
        "coverage of 90 %",
        "mean width (tokens)",
        "prior's",
        "R2 sigma",
    ]
    rows = [
        [
            f"{_name(cell)}, {name}",
            f"{scores['nll']:.2f}",
            f"{scores['nll_prior']:.2f}",
            percent(scores["coverage"]),
            f"{scores['interval_width']:,.0f}",
            f"{scores['interval_width_prior']:,.0f}",
            f"{scores['r2_sigma']:.2f}",
        ]
        for cell, result in networks
        for name, scores in result.items()
    ]
    return (
        "Likelihood and intervals as calibrated in training, without the correction that serving "
        "adds online; the prior is that of the training labels. R2 of sigma is that of the network "
        "against the fits of ten samples; trained by likelihood, its sigma holds its own error "
        "too, so that it cannot match them.\n\n" + table(head, rows)
    )


def _loop(loops: Pairs) -> str:
    cell = loops[0][0]
    parts = [
        f"The loop closed: Llama-3.1-8B's withheld prompts, {cell['requests']:,} requests at "
        f"{cell['load']:g} times the capacity of one replica, forecasts of the network that learnt "
        f"from all thirteen models. {step_time_sentence(cell['step_time'])} *Way* is the share of "
        "the way from FCFS to the true distributions, in mean latency per token."
    ]
    for regime in dict.fromkeys(c["regime"] for c, _ in loops):
        runs = [r["arms"] for c, r in loops if c["regime"] == regime]
        rows = []
        for name, label in _ARMS.items():
            per_token = [run[name]["per_token_mean_s"] for run in runs]
            way = [_way(run, name) for run in runs]
            rows.append(
                [
                    label,
                    spread(per_token, 3),
                    spread([run[name]["latency_mean_s"] for run in runs], 1),
                    spread(way),
                    _known([run[name]["kendall"] for run in runs]),
                ]
            )
        head = [REGIMES[regime].label, "s/token", "mean latency (s)", "way", "rank correlation"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def _way(run: Mapping[str, Any], name: str) -> float:
    start, end = run["fcfs"]["per_token_mean_s"], run["oracle"]["per_token_mean_s"]
    return float((start - run[name]["per_token_mean_s"]) / (start - end))


def _known(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if known else ""
