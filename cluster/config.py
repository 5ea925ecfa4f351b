"""The cluster's configuration: one validated YAML file, the same fields everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from cluster.config_sections import (
    AutoscaleConfig,
    EnergyConfig,
    GatewayConfig,
    PolicyConfig,
    PredictorConfig,
    QueueConfig,
    RayConfig,
    ReplicasConfig,
    Section,
    StatisticsConfig,
    TelemetryConfig,
    absolute,
)
from policies.bundle import Policy, policy
from replicas.embedded_model import EMBEDDED_MODEL
from replicas.power_model import PowerModelError


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the field, the value and the fix."""


class ClusterConfig(Section):
    """Everything a cluster is started with."""

    model: str = EMBEDDED_MODEL
    """Model folder, hub name, or the embedded model."""

    client_timeout_s: float = Field(60.0, gt=0)
    """Silence after which a client's requests stop; they go on should it come back."""

    journal: str | None = None
    """File, on the controller's node, that records all decisions for `tiebreak replay`."""

    replicas: ReplicasConfig = ReplicasConfig()
    autoscale: AutoscaleConfig = AutoscaleConfig()
    policy: PolicyConfig = PolicyConfig()
    queue: QueueConfig = QueueConfig()
    gateway: GatewayConfig = GatewayConfig()
    predictor: PredictorConfig = PredictorConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    energy: EnergyConfig = EnergyConfig()
    ray: RayConfig = RayConfig()

    @field_validator("journal")
    @classmethod
    def _from_anywhere(cls, journal: str | None) -> str | None:
        """A file is meant from where the command was given; the controller works elsewhere."""
        return absolute(journal)

    def build_policy(self) -> Policy:
        """The policy bundle with its options.

        Raises:
            ConfigError: No such bundle or option.
        """
        try:
            other = {"max_evictions", "give_way", "fair_share"}
            return policy(**self.policy.model_dump(exclude=other))
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
            if target.get(section) is None:  # also where the file has the section's name alone
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise ConfigError(f"{path}: {section} is {target!r}, must be a mapping of fields")
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
    if config.replicas.engine == "simulated":
        try:
            config.energy.device(flops_per_token=None)
        except PowerModelError as error:
            raise ConfigError(f"{origin}: energy: {error}") from None
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{name} is {first['input']!r}: {message[0].lower()}{message[1:]}"
    known = [field.name for field in fields()]
    siblings = [k for k in known if k.rpartition(".")[0] == name.rpartition(".")[0]] or known
    near = difflib.get_close_matches(name, siblings + known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(siblings)}"
    return f"unknown key {name!r}: {hint}"


class ConfigField(Section):
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
