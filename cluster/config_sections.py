"""The sections of the configuration: what can be set, what it means, and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from policies.bundle import DEFAULT_POLICY
from predictor.network_source import AUTO, NONE
from replicas.power_model import ModelledDevice, modelled_device

LOOK_AHEAD = 2
"""Requests sent to an engine ahead of there being room, which hide the way there and back; more
gain nothing (`tiebreak bench look-ahead`)."""


def absolute(path: str | None) -> str | None:
    """A path that means the same in every process of a node, whatever its working folder."""
    return None if path is None else str(Path(path).expanduser().absolute())


class Section(BaseModel):
    """What all sections share: no unknown fields, and docstrings for `tiebreak config`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ReplicasConfig(Section):
    """The engines."""

    count: int = Field(2, ge=0)
    """Replicas to start."""

    engine: Literal["vllm", "simulated"] = "vllm"
    """What a replica runs; `simulated` needs no model and no accelerator."""

    scheduler: Literal["projected", "vllm"] = "projected"
    """Who starts and evicts inside an engine: the policy by its projection, or vLLM's own rules."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where vLLM runs; `auto` takes GPUs when the Ray cluster has any."""

    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs of one replica; all of them on one node."""

    cpus_per_replica: int = Field(1, ge=1)
    """CPU cores a CPU replica is pinned to and reserves in Ray."""

    max_model_len: int | None = Field(2048, ge=16)
    """Prompt plus output tokens of the longest request; null: what the model allows."""

    max_num_seqs: int = Field(32, ge=1)
    """Requests one replica decodes at once."""

    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache of a CPU replica in GiB; GPU replicas profile their own memory."""

    block_size: int = Field(32, ge=1)
    """Tokens per KV-cache block."""

    look_ahead: int | None = Field(None, ge=0)
    """Requests an engine is sent ahead of room; null: 2, under vLLM's scheduler for slots only."""

    engine_args: dict[str, Any] = {}
    """Further arguments of vllm.AsyncEngineArgs (or of the simulated engine), passed through."""

    resources: dict[str, float] = {}
    """Further Ray resources each replica reserves, to steer where replicas are placed."""

    placement_timeout_s: float = Field(120.0, gt=0)
    """How long Ray may take to find room for a replica before the start counts as failed."""

    start_timeout_s: float = Field(600.0, gt=0)
    """How long a replica may take to load before the start counts as failed."""

    frozen_after_s: float = Field(20.0, gt=0)
    """Least time with work and without progress after which a replica is killed and replaced."""

    drain_timeout_s: float = Field(30.0, ge=0)
    """How long a replica that leaves may finish its requests; then they go on elsewhere."""

    @property
    def slots_ahead(self) -> int:
        """Requests sent to an engine beyond max_num_seqs."""
        return LOOK_AHEAD if self.look_ahead is None else self.look_ahead

    @property
    def memory_ahead(self) -> int:
        """Requests sent to an engine beyond what its memory is projected to hold."""
        if self.look_ahead is None and self.scheduler == "vllm":
            return 0  # vLLM would start them at once
        return self.slots_ahead


class PolicyConfig(Section):
    """Who goes next and what fits."""

    name: str = DEFAULT_POLICY
    """fcfs, sjf, sept, tie, a_max, a_min, tie+a_min, promote_l, mc_sf, h_sf or tiebreak."""

    ordering: str | None = None
    """Another ordering than the bundle's."""

    ordering_options: dict[str, Any] = {}
    """Options of the ordering, for example {gamma: 0.8}."""

    admission: str | None = None
    """Another admission than the bundle's."""

    admission_options: dict[str, Any] = {}
    """Options of the admission, for example {q: 0.7}."""

    eviction: str | None = None
    """Another eviction than the bundle's."""

    eviction_options: dict[str, Any] = {}
    """Options of the eviction, for example {variant: stored}."""

    max_evictions: int = Field(3, ge=1)
    """Times a request may be evicted inside an engine; then its room is kept up to its cap."""

    give_way: bool = True
    """Whether offline requests are evicted where an online one would find no room in an engine."""

    backfill: int = Field(0, ge=0)
    """Requests that may overtake a head that fits nowhere; 0 keeps the order strictly."""

    guard_band: float = Field(0.05, ge=0, lt=1)
    """Least share of KV memory kept clear of offline work while online requests come; 0: none."""

    horizon: Literal["own", "all"] = "own"
    """Steps over which a request must fit to be admitted: its own, or all that are projected."""

    fair_share: bool = False
    """Whether tenants of a class share by predicted tokens; else all are ordered as one."""

    def for_engine(self) -> dict[str, Any]:
        """What a scheduler inside an engine decides with, as plain values.

        Overtaking and the guard band are the controller's, which sees all requests.
        """
        return self.model_dump(exclude={"backfill", "guard_band", "fair_share"})


class QueueConfig(Section):
    """What may wait."""

    online_requests: int = Field(10_000, ge=1)
    """Online requests that may wait; beyond it new ones are refused, for now."""

    online_tokens: int = Field(4_000_000, ge=1)
    """Predicted output tokens of the online requests that may wait."""

    offline_requests: int = Field(1_000_000, ge=1)
    """Offline requests that may wait."""

    offline_tokens: int = Field(1_000_000_000, ge=1)
    """Predicted output tokens of the offline requests that may wait."""

    replacement_s: float = Field(600.0, gt=0)
    """How long requests wait while no replica serves; then they fail."""


class AutoscaleConfig(Section):
    """How many replicas there are."""

    max: int | None = Field(None, ge=1)
    """Most replicas; null: replicas.count of them, always."""

    min: int = Field(1, ge=0)
    """Fewest replicas; 0: none while there is no work."""

    target_wait_s: float = Field(20.0, gt=0)
    """Seconds of predicted work that may wait per replica before another one is started."""

    up_delay_s: float = Field(5.0, ge=0)
    """How long more replicas must be wanted before they are started."""

    down_delay_s: float = Field(120.0, ge=0)
    """How long fewer replicas must be enough before one leaves."""


class GatewayConfig(Section):
    """The OpenAI endpoint."""

    host: str = "127.0.0.1"
    """Address it listens on; 0.0.0.0 lets other machines in, then set api_keys."""

    port: int = Field(8000, ge=0, le=65535)
    """Port it listens on."""

    replicas: int = Field(1, ge=1)
    """Gateway processes."""

    served_model_name: str | None = None
    """Name that clients ask for; null: the model's."""

    api_keys: str | None = None
    """File with a line `tenant: key` for each key that is let in; null: everybody is."""

    operators: list[str] = []
    """Tenants whose keys show everybody's requests on the dashboard; the others see their own."""

    max_body_bytes: int = Field(16 << 20, ge=1)
    """Largest request body; larger ones are refused with 413."""

    body_timeout_s: float = Field(60.0, gt=0)
    """Longest time in which a request's body may come in; slower ones are refused with 408."""

    request_timeout_s: float | None = Field(None, gt=0)
    """Longest time for a request, which x-request-timeout can shorten; null: no limit."""

    vllm_args: dict[str, Any] = {}
    """Further options of vLLM's server, such as {enable_auto_tool_choice: true}."""

    @field_validator("api_keys")
    @classmethod
    def _from_anywhere(cls, api_keys: str | None) -> str | None:
        """A file is meant from where the command was given; gateways work elsewhere."""
        return absolute(api_keys)


class PredictorConfig(Section):
    """Forecasts of answer lengths."""

    network: str = AUTO
    """A network's folder, auto (the one shipped for the model, if any) or none (prior only)."""

    coverage: float = Field(0.9, gt=0, lt=1)
    """Share of answers the forecast interval should contain."""

    actors: int = Field(1, ge=1)
    """Predictor processes; more of them forecast more prompts per second."""

    num_gpus: float = Field(0, ge=0)
    """GPUs that each of them reserves in Ray, a fraction to share one; 0 runs on the CPU."""

    queue: int = Field(8192, ge=1)
    """Requests that may wait for the network; beyond it the oldest keep the prior's forecast."""

    timeout_s: float = Field(10.0, gt=0)
    """Silence after which a predictor is left out until it answers again."""

    state: str | None = None
    """File that keeps what was learnt between runs; null: one per model in the cache folder."""

    @field_validator("network", "state")
    @classmethod
    def _from_anywhere(cls, path: str | None) -> str | None:
        """A path is meant from where the command was given; predictors work elsewhere."""
        return path if path in (AUTO, NONE) else absolute(path)


class TelemetryConfig(Section):
    """What is told to Prometheus and OpenTelemetry."""

    metrics_interval_s: float | None = Field(5.0, gt=0, le=10)
    """Seconds between updates of the metrics for Prometheus; null: there are none."""

    metrics_tenants: int = Field(20, ge=0)
    """Tenants that have metrics of their own; the others are counted together."""

    otlp_endpoint: str | None = Field(None, pattern="^https?://")
    """Where an OpenTelemetry collector takes traces, http://localhost:4317 say; null: none."""

    otlp_protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """How the collector takes them; the endpoint of http/protobuf ends in /v1/traces."""

    traced_share: float = Field(1.0, ge=0, le=1)
    """Share of the requests traced among those whose client does not say."""


class StatisticsConfig(Section):
    """Rows of finished requests, and percentiles."""

    rows: str | None = None
    """Folder, on the controller's node, for Parquet files with a row per request; null: none."""

    kept: int = Field(10_000, ge=1)
    """Latest finished requests that the controller can tell about."""

    tenants: int = Field(20, ge=1)
    """Tenants with percentiles of their own; the others are counted together."""

    @field_validator("rows")
    @classmethod
    def _from_anywhere(cls, rows: str | None) -> str | None:
        """A folder is meant from where the command was given; the controller works elsewhere."""
        return absolute(rows)


class EnergyConfig(Section):
    """How energy is measured, and how much may be used."""

    meter: Literal["auto", "model", "none"] = "auto"
    """auto: hardware counters, else the power model if one is given; model: it alone; none."""

    power_model: str | dict[str, str | float] | None = None
    """Name of a known GPU, or {idle_w, max_w, peak_flops_per_s, flops_per_token}; null: none."""

    idle_w: float | None = Field(None, ge=0)
    """Watts of a replica's hardware without work; null: the power model's, else the lowest seen."""

    power_cap_w: float | None = Field(None, gt=0)
    """Watts of all replicas above which offline work is held back; null: no limit."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.meter == "model" and self.power_model is None:
            raise ValueError("meter is model, which needs energy.power_model: name or declare one")
        if self.power_model is not None:
            self.device(flops_per_token=1.0)  # of the model, which is looked at later
        return self

    def device(self, flops_per_token: float | None, devices: int = 1) -> ModelledDevice | None:
        """A replica's devices by the power model; None: there is none.

        Args:
            flops_per_token: Of the language model, where the power model does not say.
            devices: GPUs of a replica.

        Raises:
            PowerModelError: Nobody says `flops_per_token`, or a figure is out of range.
        """
        if self.power_model is None:
            return None
        return modelled_device(self.power_model, flops_per_token=flops_per_token, devices=devices)


class RayConfig(Section):
    """The Ray cluster."""

    address: str | None = None
    """Address of a running Ray cluster; null: a running local one, else a new local one."""
