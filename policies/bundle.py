"""Policies: an ordering, an admission and an eviction that work together, found by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from policies.admission import ADMISSIONS, Admission
from policies.eviction import EVICTIONS, Eviction
from policies.ordering import ORDERINGS, Ordering
from policies.registry import InvalidOptionError, check_choice, check_name

HORIZONS = ("own", "all")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a scheduler decides with.

    Attributes:
        name: The bundle it was made from.
        ordering: Who goes next.
        admission: Which length the memory projection assumes.
        eviction: Who gives up memory first.
        backfill: Requests that may overtake a head that fits nowhere; 0 is the papers' strict
            prefix.
        guard_band: Share of a replica's memory, in [0, 1), that offline work leaves free.
        horizon: Over which steps the projection must stay within memory for a request to be
            admitted: `own`, those that it would run itself; `all`, also those after it. They differ
            once running requests alone are projected beyond memory: `all` then admits nobody,
            `own` whoever will be gone by then.

    Raises:
        InvalidOptionError: An option is out of range.
    """

    name: str
    ordering: Ordering
    admission: Admission
    eviction: Eviction
    backfill: int = 0
    guard_band: float = 0.0
    horizon: str = "own"

    def __post_init__(self) -> None:
        if self.backfill < 0:
            raise InvalidOptionError(
                f"policy {self.name!r}: backfill is {self.backfill}, must be at least 0 requests"
            )
        if not 0 <= self.guard_band < 1:
            raise InvalidOptionError(
                f"policy {self.name!r}: guard_band is {self.guard_band}, must be a share in 0..1, "
                "1 excluded"
            )
        check_choice("horizon", self.horizon, HORIZONS)


Options = Mapping[str, Any]
_NO_OPTIONS: Options = MappingProxyType({})
_NO_AGEING: Options = MappingProxyType({"gamma": 1.0})


class _Recipe(NamedTuple):
    """Names of a bundle's parts, with the options that differ from the parts' defaults."""

    ordering: str
    admission: str = "greedy"
    eviction: str = "latest"
    ordering_options: Options = _NO_OPTIONS
    admission_options: Options = _NO_OPTIONS


DEFAULT_POLICY = "tiebreak"

_RECIPES: dict[str, _Recipe] = {
    "fcfs": _Recipe("fcfs"),
    "sjf": _Recipe("sjf"),
    "sept": _Recipe("sept"),
    "tie": _Recipe("tie"),
    "a_max": _Recipe("upper_bound", "a_max", ordering_options=_NO_AGEING),
    "a_min": _Recipe("lower_bound", "a_min", "shortest_lower_bound", _NO_AGEING),
    "tie+a_min": _Recipe("tie", "a_min", "shortest_lower_bound"),
    "promote_l": _Recipe("lower_bound", "a_min", "promotion", _NO_AGEING),
    "mc_sf": _Recipe("sjf", "quantile", "shortest_lower_bound", _NO_AGEING, {"q": 0.5}),
    "h_sf": _Recipe("oracle", "oracle", ordering_options=_NO_AGEING),
    "tiebreak": _Recipe("kv_volume", "quantile", "longest_remaining"),
}


def policy_names() -> list[str]:
    """Names that `policy` knows."""
    return list(_RECIPES)


def policy(
    name: str = DEFAULT_POLICY,
    *,
    ordering: str | None = None,
    ordering_options: Options = _NO_OPTIONS,
    admission: str | None = None,
    admission_options: Options = _NO_OPTIONS,
    eviction: str | None = None,
    eviction_options: Options = _NO_OPTIONS,
    backfill: int = 0,
    guard_band: float = 0.0,
    horizon: str = "own",
) -> Policy:
    """The bundle called `name`, with parts exchanged or their options changed.

    Args:
        name: One of `policy_names()`.
        ordering: Another ordering; the bundle's options for its own are then dropped.
        ordering_options: Options of the ordering, over the bundle's: `{"gamma": 0.8}`.
        admission: Another admission; likewise.
        admission_options: Options of the admission: `{"q": 0.4}`.
        eviction: Another eviction.
        eviction_options: Options of the eviction: `{"variant": "stored"}`.
        backfill: See `Policy`.
        guard_band: See `Policy`.
        horizon: See `Policy`.

    Raises:
        UnknownNameError: No such bundle or part.
        InvalidOptionError: A part has no such option or refuses its value.
        PluginError: A part from an entry point is broken.
    """
    check_name("policy", name, _RECIPES)
    recipe = _RECIPES[name]
    if ordering in (None, recipe.ordering):
        ordering_options = {**recipe.ordering_options, **ordering_options}
    if admission in (None, recipe.admission):
        admission_options = {**recipe.admission_options, **admission_options}
    return Policy(
        name=name,
        ordering=ORDERINGS.build(ordering or recipe.ordering, ordering_options),
        admission=ADMISSIONS.build(admission or recipe.admission, admission_options),
        eviction=EVICTIONS.build(eviction or recipe.eviction, eviction_options),
        backfill=backfill,
        guard_band=guard_band,
        horizon=horizon,
    )
