"""One instance of the papers' unit-step model, run through the simulated cluster.

One worker, every step takes one second and makes one token of each running request; an evicted
request restarts from nothing (arXiv:2508.14544, section 2). The scheduling core, the policies and
the engine are those of every other simulation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group, RenderableType
from rich.table import Table

from cluster.config import ConfigError
from cluster.simulation import simulate
from cluster.virtual_replica import FleetSpec
from cluster.workload import WorkloadChunk
from jobs.errors import InputError
from jobs.simulating.instance_file import Instance
from policies.batch import Ints
from policies.bundle import Policy, policy
from policies.registry import InvalidOptionError, UnknownNameError, check_name
from policies.request import RequestClass
from replicas.batch_limits import BatchLimits
from replicas.step_time import UnitStepTime

EVICTION_KEYS = ("realtime", "stored")
OVERDUE = ("alive", "double")
TIES = ("id", "random")

_TAKES_EVICTION_KEY = ("a_min", "mc_sf")
_TAKES_OVERDUE = ("a_max", "a_min", "promote_l")
_USES_BOUNDS = ("a_max", "a_min", "promote_l")
INSTANCE_POLICIES = ("h_sf", "a_max", "a_min", "mc_sf", "promote_l", "fcfs")


@dataclass(frozen=True, slots=True)
class InstanceOptions:
    """How an instance is run; the first value of each choice is the default.

    Attributes:
        policy: One of `INSTANCE_POLICIES`.
        eviction_key: One of `EVICTION_KEYS`, for the policies that evict by lower bound.
        overdue: One of `OVERDUE`, for the policies that assume a bound.
        ties: Equal requests go by their place in the file (`id`) or by a place drawn from `seed`
            (`random`).
        seed: Of the random ties.

    Raises:
        ConfigError: A value is unknown, or the policy has no use for it.
    """

    policy: str
    eviction_key: str = EVICTION_KEYS[0]
    overdue: str = OVERDUE[0]
    ties: str = TIES[0]
    seed: int = 0

    def __post_init__(self) -> None:
        choices = (
            ("policy", self.policy, INSTANCE_POLICIES),
            ("eviction-key", self.eviction_key, EVICTION_KEYS),
            ("overdue", self.overdue, OVERDUE),
            ("ties", self.ties, TIES),
        )
        for name, value, known in choices:
            try:
                check_name(f"value of --{name}", value, known)
            except UnknownNameError as error:
                raise ConfigError(str(error)) from None
        self._require_use("eviction-key", self.eviction_key, EVICTION_KEYS, _TAKES_EVICTION_KEY)
        self._require_use("overdue", self.overdue, OVERDUE, _TAKES_OVERDUE)
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}, must be at least 0")

    def build(self) -> Policy:
        """The policy with its options."""
        changed = {"variant": self.eviction_key} if self.policy in _TAKES_EVICTION_KEY else {}
        assumed = {"overdue": self.overdue} if self.policy in _TAKES_OVERDUE else {}
        try:
            return policy(self.policy, eviction_options=changed, admission_options=assumed)
        except InvalidOptionError as error:
            raise ConfigError(str(error)) from None

    def _require_use(
        self, name: str, value: str, known: tuple[str, ...], users: tuple[str, ...]
    ) -> None:
        if value != known[0] and self.policy not in users:
            raise ConfigError(
                f"--{name} {value} has no meaning for the policy {self.policy!r}, only for "
                f"{', '.join(users)}; leave it out"
            )


@dataclass(frozen=True, slots=True)
class InstanceOutcome:
    """What an instance came to; times in steps.

    Attributes:
        total_latency: Sum over the requests of completion less arrival.
        completions: By request, in the order of the file.
        evictions: Times a request lost its memory.
        wasted_tokens: Output tokens that evictions threw away.
        makespan: The last completion.
        peak_tokens: Most memory in use.
    """

    total_latency: int
    completions: list[int]
    evictions: int
    wasted_tokens: int
    makespan: int
    peak_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def run_instance(instance: Instance, options: InstanceOptions) -> InstanceOutcome:
    """Simulate an instance.

    Raises:
        InputError: A request's output length lies outside its bounds and the policy relies on them.
    """
    if options.policy in _USES_BOUNDS:
        _require_true_bounds(instance, options.policy)
    count = len(instance.requests)
    if not count:
        return InstanceOutcome(0, [], 0, 0, 0, 0)
    arrival = np.array([r.arrival for r in instance.requests], np.int64)
    places = np.arange(count)
    if options.ties == "random":
        places = np.random.default_rng(options.seed).permutation(count)
    at = np.argsort(places)
    completions = np.zeros(count, np.int64)

    def collect(rows: pa.RecordBatch) -> None:
        finished = np.rint(rows.column("finished_s").to_numpy()).astype(np.int64)
        completions[at[rows.column("request").to_numpy()]] = finished

    chunk = _chunk(instance, np.argsort(arrival, kind="stable"), places)
    result = simulate(options.build(), [chunk], _worker(instance), rows=collect)
    return InstanceOutcome(
        total_latency=int((completions - arrival).sum()),
        completions=completions.tolist(),
        evictions=result.evictions,
        wasted_tokens=result.wasted_tokens,
        makespan=int(completions.max()),
        peak_tokens=result.peak_memory_blocks,
    )


def render_instance(outcome: InstanceOutcome, options: InstanceOptions) -> RenderableType:
    """An outcome for people."""
    summary = Table(title=f"Policy {options.policy}", title_justify="left", box=None)
    totals = outcome.as_dict()
    completions = totals.pop("completions")
    for name in totals:
        summary.add_column(name.replace("_", " "), justify="right")
    summary.add_row(*(f"{value:,}" for value in totals.values()))
    each = Table(title="Completions", title_justify="left", box=None)
    each.add_column("request", justify="right")
    each.add_column("completed at step", justify="right")
    for index, step in enumerate(completions):
        each.add_row(str(index), f"{step:,}")
    return Group(summary, each) if completions else summary


def _worker(instance: Instance) -> FleetSpec:
    memory, count = instance.memory_tokens, len(instance.requests)
    return FleetSpec(
        replicas=1,
        limits=BatchLimits(
            kv_blocks=memory,
            block_size=1,
            max_num_seqs=count,
            # A step prefills at most what fits into memory and decodes at most every request.
            max_num_batched_tokens=memory + count,
        ),
        step_time=UnitStepTime(),
        on_eviction="restart",
        report_interval_s=0,
    )


def _chunk(instance: Instance, order: Ints, places: Ints) -> WorkloadChunk:
    requests = [instance.requests[i] for i in order]
    prompts = np.array([r.prompt_tokens for r in requests], np.int64)
    return WorkloadChunk(
        arrival_s=np.array([r.arrival for r in requests], np.float64),
        prompt_tokens=prompts,
        max_tokens=instance.memory_tokens - prompts,  # longer than this can never run
        output_tokens=np.array([r.output_tokens for r in requests], np.int64),
        request_class=np.full(len(requests), RequestClass.ONLINE, np.int64),
        mu=np.log([r.predicted for r in requests]),
        sigma=np.zeros(len(requests)),
        lower=np.array([r.lower for r in requests], np.int64),
        upper=np.array([r.upper for r in requests], np.int64),
        number=places[order],
    )


def _require_true_bounds(instance: Instance, name: str) -> None:
    for index, r in enumerate(instance.requests):
        if not r.lower <= r.output_tokens <= r.upper:
            raise InputError(
                f"request {index}: output_tokens is {r.output_tokens}, outside lower..upper "
                f"({r.lower}..{r.upper}), on which the policy {name!r} relies; correct the bounds"
            )
