"""`tiebreak forecast`: how long the answer to one prompt will be, without a cluster."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.config import ClusterConfig, ConfigError, parse_config
from cluster.forecasting import network_source, state_path
from cluster.prompts import PromptEncoder
from jobs.length_chart import length_chart
from jobs.score import score_forecast
from policies.forecast import Forecast
from policies.logt import survival
from policies.ordering import QueueState
from predictor.actor import PredictorActor
from predictor.excerpt import excerpt
from predictor.messages import Answer, ForecastQuery, PredictorStats
from predictor.network_source import AUTO, NONE

console = Console()


def forecast(
    config: ClusterConfig,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from the standard input.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Cap on the answer's length.")] = 256,
    network: Annotated[
        str | None,
        typer.Option(help="A network's folder, as --predictor.network.", metavar="FOLDER"),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 1.0,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Length of the prompt. Default: by the model's own tokenizer."),
    ] = None,
    waiting: Annotated[int, typer.Option(min=0, help="Requests in the queue, for the scores.")] = 0,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Requests that run at once. Default: the configured replicas'."),
    ] = None,
    report_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forecast the answer's length: distribution, interval, and what the orderings make of it.

    It is what a cluster of this configuration would be told: the same network, the same prior, and
    what an earlier cluster learnt of either on this machine. No cluster is needed.
    """
    if network is not None:
        values = config.model_dump(mode="json")
        values["predictor"]["network"] = network
        config = parse_config(values, origin="options")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty: give the text that the model will be sent")
    query = ForecastQuery(
        request_id="forecast",
        model=config.model,
        prompt_tokens=prompt_tokens or _length(config.model, text),
        max_tokens=max_tokens,
        text=excerpt(text),
        temperature=temperature,
    )
    answer, stats = asyncio.run(_ask(config, query))
    if stats.network_error is not None and config.predictor.network != AUTO:
        raise ConfigError(f"--network {config.predictor.network}: {stats.network_error}")
    replicas = config.replicas
    queue = QueueState(waiting, slots or max(1, replicas.count * replicas.max_num_seqs))
    report = _report(config, query, answer, stats, queue)
    if report_json:
        console.print_json(data=report)
    else:
        _print(report, answer.forecast)


async def _ask(config: ClusterConfig, query: ForecastQuery) -> tuple[Answer, PredictorStats]:
    """One answer of a predictor in this process."""
    predictor = PredictorActor(
        str(state_path(config)),
        coverage=config.predictor.coverage,
        source=network_source(config),
        writes=False,
    )
    await predictor.ready()
    (answer,) = await predictor.forecast([query])
    return answer, await predictor.stats()


def _length(model: str, prompt: str) -> int:
    try:
        encoder = PromptEncoder(model)
        return len(encoder.encode(prompt, chat_template=encoder.has_chat_template))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the prompt's length in tokens of {model!r} is not known, give --prompt-tokens: "
            f"{reason}"
        ) from None


def _report(
    config: ClusterConfig,
    query: ForecastQuery,
    answer: Answer,
    stats: PredictorStats,
    queue: QueueState,
) -> dict[str, Any]:
    """All that is told; `source_note` says why it is the prior's where there could be a network."""
    made = answer.forecast
    cap = query.max_tokens
    return {
        "model": query.model,
        "source": made.source,
        "source_note": _note(config, answer, stats),
        "network": stats.network,
        "prompt_tokens": query.prompt_tokens,
        "max_tokens": cap,
        "temperature": query.temperature,
        "mu": made.mu,
        "sigma": made.sigma,
        "coverage": config.predictor.coverage,
        "lower": made.lower,
        "upper": made.upper,
        "share_at_cap": float(survival(made.mu, made.sigma, cap)),
        "waiting": queue.waiting,
        "slots": queue.slots,
        **score_forecast(made.mu, made.sigma, cap, query.prompt_tokens, queue),
    }


def _note(config: ClusterConfig, answer: Answer, stats: PredictorStats) -> str:
    if answer.forecast.source != "prior" or config.predictor.network == NONE:
        return ""
    if not stats.network:
        return f"no network is shipped for {config.model}; --network names one"
    if stats.network_error is not None:
        return stats.network_error
    if answer.learned is None:
        return f"the network has no answer: {stats.last_failure}"
    return f"the network is out of favour: {stats.watch.reason if stats.watch else ''}"


def _print(report: dict[str, Any], made: Forecast) -> None:
    source = f"{report['source']} {report['network']}" if made.source != "prior" else "prior"
    if report["source_note"]:
        source += f" ({report['source_note']})"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    coverage = f"{100 * report['coverage']:g} % interval"
    rows = {
        "model": report["model"],
        "source": source,
        "prompt": f"{report['prompt_tokens']:,} tokens",
        "ln X": f"mu {made.mu:.3f}, sigma {made.sigma:.3f} (log-t)",
        coverage: f"{made.lower:,} to {made.upper:,} tokens",
        "at the cap": f"{100 * report['share_at_cap']:.1f} % would be longer than "
        f"{report['max_tokens']:,} tokens",
        "E[X~]": f"{report['expectation']:,.1f} tokens",
        "CVaR": f"{report['cvar']:,.1f} tokens",
        "TIE score": f"{report['tie']:,.1f} tokens (beta {report['beta']:.3f}: "
        f"{report['waiting']:,} waiting, {report['slots']:,} slots)",
        "KV volume": f"{report['kv_volume']:,.0f} tokens x steps",
    }
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    console.print(table)
    console.print()
    console.print(length_chart(made, report["max_tokens"]))
