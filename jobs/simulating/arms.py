"""The arms of a comparison: policies by name, with parts and options changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from cluster.config import ConfigError
from policies.bundle import Policy, policy
from policies.registry import InvalidOptionError, PluginError, UnknownNameError, check_name

PARTS = ("ordering", "admission", "eviction")
_NUMBERS = ("backfill", "guard_band")

SYNTAX = "NAME:PART=NAME:PART.OPTION=VALUE@FORECAST"
"""How an arm is written; all but NAME may be absent. backfill=N and guard_band=X are parts too."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a comparison.

    Attributes:
        policy: What decides; its name is the arm's, as it was written.
        forecast: Where its forecasts come from; None for where all others' come from.
    """

    policy: Policy
    forecast: str | None = None

    @property
    def name(self) -> str:
        """As it was written."""
        return self.policy.name


def parse_arms(texts: Sequence[str], forecasts: Sequence[str]) -> list[Arm]:
    """The arms that `texts` name, each of them several with commas between.

    Args:
        texts: Arms written as `SYNTAX`.
        forecasts: Known sources of forecasts.

    Raises:
        ConfigError: A name or option is unknown, or an arm is named twice.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--policy names no policy; give at least one, or leave it out")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--policy names {name!r} twice; name each arm once")
    return [parse_arm(name, forecasts) for name in names]


def parse_arm(text: str, forecasts: Sequence[str]) -> Arm:
    """The arm that `text` names; raises `ConfigError` as above."""
    bundle, _, forecast = text.partition("@")
    name, *changes = bundle.split(":")
    try:
        if "@" in text:
            check_name("forecast", forecast, forecasts)
        made = policy(name, **_keywords(changes))
    except (UnknownNameError, InvalidOptionError, PluginError) as error:
        raise ConfigError(f"--policy {text!r}: {error}") from None
    return Arm(replace(made, name=text), forecast or None)


def _keywords(changes: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of `policies.bundle.policy` from `PART=NAME` and `PART.OPTION=VALUE`."""
    keywords: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        part, dot, option = key.partition(".")
        if not equals or not text or part not in ((*PARTS, *_NUMBERS) if not dot else PARTS):
            raise InvalidOptionError(
                f"{change!r} is not PART=NAME or PART.OPTION=VALUE with a PART among "
                f"{', '.join(PARTS)}, nor backfill=N or guard_band=SHARE"
            )
        if dot:
            keywords.setdefault(f"{part}_options", {})[option] = _value(text)
        else:
            keywords[part] = text if part in PARTS else _number(part, text)
    return keywords


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name == "backfill" else float(text)
    except ValueError:
        kind = "a whole number" if name == "backfill" else "a number"
        raise InvalidOptionError(f"{name} is {text!r}, must be {kind}") from None
