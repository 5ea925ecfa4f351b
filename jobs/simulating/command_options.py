"""The options of `tiebreak simulate`, by the panels of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.simulating.arms import PARTS, SYNTAX
from jobs.simulating.choices import (
    ARRIVALS,
    DEFAULT_KV_TOKENS,
    EVICTIONS,
    FORECASTS,
    INTERVALS,
    LENGTHS,
)
from jobs.simulating.comparison import CAPACITY_REQUESTS, CAPACITY_SHARE
from jobs.simulating.instance import EVICTION_KEYS, INSTANCE_POLICIES, OVERDUE, TIES
from policies.bundle import policy_names
from replicas.power_model import NAMED_GPUS

DEFAULT_ARMS = "fcfs,sjf,tie,a_min,tie+a_min,tiebreak,tiebreak@random,h_sf"
DEFAULT_LOAD = 2.0

POLICY_PANEL = "Policies"
REQUEST_PANEL = "Requests"
LOAD_PANEL = "Load"
FLEET_PANEL = "Replicas"
INSTANCE_PANEL = "Single instances (unit-step model)"
OUTPUT_PANEL = "Output"

_INSTANCE_HELP = (
    'JSON: {"memory_tokens": M, "requests": [{"prompt_tokens", "output_tokens", "lower", "upper", '
    '"arrival", "predicted"}, ...]}, the last two optional. Needs --step unit and one --policy of '
    f"{', '.join(INSTANCE_POLICIES)}."
)

PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{SYNTAX}, all but NAME may be left out; repeat it or put commas between. Policies: "
        f"{', '.join(policy_names())}. Parts: {', '.join(PARTS)}. Default: "
        f"{DEFAULT_ARMS.replace(',', ', ')}.",
        metavar="ARM",
        rich_help_panel=POLICY_PANEL,
    ),
]
ForecastOption = Annotated[
    str,
    typer.Option(
        help=f"What policies are told of lengths: {', '.join(FORECASTS)}. noisy is a predictor "
        "of the accuracy below; random is its forecasts, exchanged between requests; learned is "
        "the network below.",
        rich_help_panel=POLICY_PANEL,
    ),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of a trained network (`tiebreak train`), for learned forecasts.",
        metavar="FOLDER",
        rich_help_panel=POLICY_PANEL,
    ),
]
R2MuOption = Annotated[float, typer.Option(help="Accuracy of mu.", rich_help_panel=POLICY_PANEL)]
R2SigmaOption = Annotated[
    float, typer.Option(help="Accuracy of ln sigma.", rich_help_panel=POLICY_PANEL)
]
CoverageOption = Annotated[
    float,
    typer.Option(help="Probability of the forecast interval.", rich_help_panel=POLICY_PANEL),
]
IntervalOption = Annotated[
    str,
    typer.Option(
        help=f"Forecast interval: {', '.join(INTERVALS)}; the last two, with a figure "
        "(bin:50, relative:0.2), are made from the true lengths.",
        rich_help_panel=POLICY_PANEL,
    ),
]
RequestsOption = Annotated[int, typer.Option(help="How many.", rich_help_panel=REQUEST_PANEL)]
LengthsOption = Annotated[
    str,
    typer.Option(help=f"{', '.join(LENGTHS)}, or castillo:MODEL.", rich_help_panel=REQUEST_PANEL),
]
CastilloOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of validate.parquet, or a Parquet file, also one of `tiebreak label`. "
        "Default: $TIEBREAK_DATA/castillo.",
        metavar="PATH",
        rich_help_panel=REQUEST_PANEL,
    ),
]
TraceOption = Annotated[
    str | None,
    typer.Option(
        help="CSV, JSON lines or Parquet with times and lengths.",
        metavar="FILE",
        rich_help_panel=REQUEST_PANEL,
    ),
]
TraceColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="TIMESTAMP,PROMPT,OUTPUT[,SECONDS_PER_UNIT] or azure, openai, mooncake. Default: "
        "recognised.",
        rich_help_panel=REQUEST_PANEL,
    ),
]
MaxTokensOption = Annotated[
    int, typer.Option(help="Where answers are cut.", rich_help_panel=REQUEST_PANEL)
]
OfflineShareOption = Annotated[
    float,
    typer.Option(help="Share of the requests that is offline.", rich_help_panel=REQUEST_PANEL),
]
ArrivalsOption = Annotated[
    str, typer.Option(help=", ".join(ARRIVALS) + ".", rich_help_panel=LOAD_PANEL)
]
BurstOption = Annotated[
    float | None,
    typer.Option(
        help="Squared coefficient of variation of gamma gaps; 1 is Poisson.",
        rich_help_panel=LOAD_PANEL,
    ),
]
LoadOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Multiples of the fleet's capacity, e.g. 0.5,1,2. Capacity is measured: the same "
        f"requests (at most {CAPACITY_REQUESTS:,} or four per slot) all at once, fcfs, "
        f"admitted by their true lengths; {CAPACITY_SHARE:.0%} of them over the time until "
        f"they have finished. Default: {DEFAULT_LOAD:g}; a trace runs at its own rate.",
        rich_help_panel=LOAD_PANEL,
    ),
]
RateOption = Annotated[
    list[str] | None,
    typer.Option(help="Requests per second instead.", rich_help_panel=LOAD_PANEL),
]
SeedOption = Annotated[int, typer.Option(help="Of all draws.", rich_help_panel=LOAD_PANEL)]
SeedsOption = Annotated[
    int, typer.Option(help="Seeds to average over, from --seed.", rich_help_panel=LOAD_PANEL)
]
ReplicasOption = Annotated[int, typer.Option(help="How many.", rich_help_panel=FLEET_PANEL)]
KvTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens in a replica's KV cache. Default: what a GPU of --step silicon leaves, "
        f"else {DEFAULT_KV_TOKENS:,}.",
        rich_help_panel=FLEET_PANEL,
    ),
]
BlockSizeOption = Annotated[
    int, typer.Option(help="Tokens of a KV block.", rich_help_panel=FLEET_PANEL)
]
MaxNumSeqsOption = Annotated[
    int, typer.Option(help="Requests a replica runs at once.", rich_help_panel=FLEET_PANEL)
]
MaxNumBatchedTokensOption = Annotated[
    int, typer.Option(help="Tokens a step computes.", rich_help_panel=FLEET_PANEL)
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option(
        help="Prompt and output tokens of a request. Default: what the cache holds.",
        rich_help_panel=FLEET_PANEL,
    ),
]
LookAheadOption = Annotated[
    int,
    typer.Option(
        help="Requests sent to a replica beyond --max-num-seqs.", rich_help_panel=FLEET_PANEL
    ),
]
OnEvictionOption = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(EVICTIONS)}: keep an evicted request's tokens, as vLLM does, or lose "
        "them, as in the papers.",
        rich_help_panel=FLEET_PANEL,
    ),
]
ReportIntervalOption = Annotated[
    float,
    typer.Option(help="Seconds a replica's report may be old.", rich_help_panel=FLEET_PANEL),
]
StepOption = Annotated[
    str,
    typer.Option(
        help="Step times: unit, linear (declared), silicon (measured kernels), or a FILE of "
        "`tiebreak calibrate`.",
        rich_help_panel=FLEET_PANEL,
    ),
]
GpuOption = Annotated[
    str | None, typer.Option(help="For silicon: h100_sxm, ...", rich_help_panel=FLEET_PANEL)
]
PowerOption = Annotated[
    str | None,
    typer.Option(
        help=f"Power model of a GPU, for energy: {', '.join(NAMED_GPUS)}, or JSON with idle_w, "
        "max_w, peak_flops_per_s and flops_per_token. Default: that of silicon's --gpu, if known; "
        "none leaves energy out.",
        metavar="NAME|JSON",
        rich_help_panel=FLEET_PANEL,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="For silicon: name on the hub.", rich_help_panel=FLEET_PANEL),
]
TensorParallelSizeOption = Annotated[
    int, typer.Option(help="For silicon.", rich_help_panel=FLEET_PANEL)
]
InstanceOption = Annotated[
    Path | None,
    typer.Option(
        help=_INSTANCE_HELP,
        metavar="FILE",
        rich_help_panel=INSTANCE_PANEL,
    ),
]
EvictionKeyOption = Annotated[
    str,
    typer.Option(help=f"{' or '.join(EVICTION_KEYS)} lower bound.", rich_help_panel=INSTANCE_PANEL),
]
OverdueOption = Annotated[
    str,
    typer.Option(
        help=f"{' or '.join(OVERDUE)}: what is assumed past a bound.",
        rich_help_panel=INSTANCE_PANEL,
    ),
]
TiesOption = Annotated[
    str,
    typer.Option(
        help=f"{' or '.join(TIES)}: who goes first among equals.",
        rich_help_panel=INSTANCE_PANEL,
    ),
]
UntilOption = Annotated[
    int | None,
    typer.Option(
        help="Report the time until this many have finished.", rich_help_panel=OUTPUT_PANEL
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for results.json, the rows of each run and report.html.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
ReportJsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT_PANEL)
]
