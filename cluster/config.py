"""The cluster's configuration: one validated YAML file, the same fields everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from policies.bundle import DEFAULT_POLICY, Policy, policy
from replicas.embedded_model import EMBEDDED_MODEL


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the field, the value and the fix."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ReplicasConfig(_Section):
    """The engines."""

    count: int = Field(2, ge=0)
    """Replicas to start."""

    engine: Literal["vllm", "simulated"] = "vllm"
    """What a replica runs; `simulated` needs no model and no accelerator."""

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

    look_ahead: int = Field(2, ge=0)
    """Requests sent to a replica beyond max_num_seqs, so that a freed slot need not wait."""

    engine_args: dict[str, Any] = {}
    """Further arguments of vllm.AsyncEngineArgs (or of the simulated engine), passed through."""

    resources: dict[str, float] = {}
    """Further Ray resources each replica reserves, to steer where replicas are placed."""

    placement_timeout_s: float = Field(120.0, gt=0)
    """How long Ray may take to find room for a replica before the start counts as failed."""

    start_timeout_s: float = Field(600.0, gt=0)
    """How long a replica may take to load before the start counts as failed."""


class PolicyConfig(_Section):
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

    backfill: int = Field(0, ge=0)
    """Requests that may overtake a head that fits nowhere; 0 keeps the order strictly."""

    guard_band: float = Field(0.05, ge=0, lt=1)
    """Share of KV memory kept clear of offline work while online requests come."""

    horizon: Literal["own", "all"] = "own"
    """Steps over which a request must fit to be admitted: its own, or all that are projected."""


class PredictorConfig(_Section):
    """Forecasts of answer lengths."""

    coverage: float = Field(0.9, gt=0, lt=1)
    """Share of answers the forecast interval should contain."""

    state: str | None = None
    """File that keeps what was learnt between runs; null: one per model in the cache folder."""


class RayConfig(_Section):
    """The Ray cluster."""

    address: str | None = None
    """Address of a running Ray cluster; null: a running local one, else a new local one."""


class ClusterConfig(_Section):
    """Everything a cluster is started with."""

    model: str = EMBEDDED_MODEL
    """Model folder, hub name, or the embedded model."""

    journal: str | None = None
    """File, on the controller's node, that records all decisions for `tiebreak replay`."""

    replicas: ReplicasConfig = ReplicasConfig()
    policy: PolicyConfig = PolicyConfig()
    predictor: PredictorConfig = PredictorConfig()
    ray: RayConfig = RayConfig()

    def build_policy(self) -> Policy:
        """The policy bundle with its options.

        Raises:
            ConfigError: No such bundle or option.
        """
        try:
            return policy(**self.policy.model_dump())
        except ValueError as error:
            raise ConfigError(f"policy: {error}") from error


def load_config(path: Path | None, overrides: Mapping[str, Any] | None = None) -> ClusterConfig:
    """The configuration from a YAML file, with dotted overrides (`{"replicas.count": 4}`) on top.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no configuration file at {path}: check --config") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"{path} cannot be read as YAML: {text}") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path} must hold a mapping of fields, not {type(loaded).__name__}")
        data = loaded or {}
    for dotted, value in (overrides or {}).items():
        *sections, name = dotted.split(".")
        target = data
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return parse_config(data, origin=str(path) if path else "options")


def parse_config(data: Mapping[str, Any], origin: str = "configuration") -> ClusterConfig:
    """Validate a mapping.

    Raises:
        ConfigError: One line that names the field, the value and the limit or the nearest name.
    """
    try:
        config = ClusterConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None
    config.build_policy()
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] != "extra_forbidden":
        return f"{name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    known = [field.name for field in fields()]
    siblings = [k for k in known if k.rpartition(".")[0] == name.rpartition(".")[0]] or known
    near = difflib.get_close_matches(name, siblings + known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(siblings)}"
    return f"unknown key {name!r}: {hint}"


class ConfigField(_Section):
    """One leaf of the configuration, for `tiebreak config` and the command-line options."""

    name: str
    """Dotted name."""

    description: str
    """What it means."""

    annotation: Any
    """Its Python type."""

    default: Any
    """Its value when nobody says otherwise."""


def fields(section: type[BaseModel] = ClusterConfig, prefix: str = "") -> Iterator[ConfigField]:
    """All leaves of the configuration, in order."""
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield ConfigField(
                name=prefix + name,
                description=info.description or "",
                annotation=kind,
                default=info.default,
            )
