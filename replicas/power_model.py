"""What a device draws at a given utilisation, where no meter says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import msgspec

SATURATION = 0.45
GAMMA = 0.7
"""Where nobody declares another curve; as Vidur-Energy (arXiv:2507.11417) takes them. They were not
checked on hardware."""


class PowerModelError(ValueError):
    """A power model cannot be had; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Power as a function of utilisation: `P = idle + (max - idle) (u / saturation)^gamma`.

    The form is that of Vidur-Energy (Özcan, Wiesner, Weiß and Kao, arXiv:2507.11417), where
    utilisation is the share of the peak arithmetic rate that the model's own arithmetic takes
    (MFU). From `saturation` on the device draws all that it can.

    Attributes:
        idle_w: Watts without work.
        max_w: Most watts.
        saturation: Utilisation from which it draws `max_w`, above 0 to 1.
        gamma: How power rises until there: below 1 fast at first, 1 in proportion.

    Raises:
        PowerModelError: A figure is out of range.
    """

    idle_w: float
    max_w: float
    saturation: float = SATURATION
    gamma: float = GAMMA

    def __post_init__(self) -> None:
        if not (math.isfinite(self.idle_w) and self.idle_w >= 0):
            raise PowerModelError(f"idle_w is {self.idle_w} W, must be finite and >= 0")
        if not (math.isfinite(self.max_w) and self.max_w >= self.idle_w):
            raise PowerModelError(
                f"max_w is {self.max_w} W, must be finite and >= idle_w, {self.idle_w} W"
            )
        if not 0 < self.saturation <= 1:
            raise PowerModelError(
                f"saturation is {self.saturation}, must be above 0 and at most 1: a share of the "
                "peak arithmetic rate"
            )
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise PowerModelError(f"gamma is {self.gamma}, must be finite and > 0")

    def watts(self, utilisation: float) -> float:
        """Watts at a utilisation of at least 0; `max_w` from `saturation` on."""
        share: float = min(1.0, utilisation / self.saturation) ** self.gamma
        return self.idle_w + (self.max_w - self.idle_w) * share


@dataclass(frozen=True, slots=True)
class ModelledDevice:
    """A replica's devices as a power model sees them, while they run one language model.

    Attributes:
        name: What figures of it are marked with, as `model:<name>`.
        power: Of all devices of the replica together.
        peak_flops_per_s: Their peak arithmetic rate, dense, in the number format that is used.
        flops_per_token: Floating-point operations of one token, prefilled or decoded; twice the
            parameters that a token passes through, where attention over the context is left out.

    Raises:
        PowerModelError: A rate is not positive and finite.
    """

    name: str
    power: PowerModel
    peak_flops_per_s: float
    flops_per_token: float

    def __post_init__(self) -> None:
        for name in ("peak_flops_per_s", "flops_per_token"):
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise PowerModelError(f"{name} is {value}, must be finite and > 0")

    @property
    def source(self) -> str:
        """What stands beside every figure."""
        return f"model:{self.name}"

    def watts(self, tokens: int, seconds: float) -> float:
        """Mean power while `tokens` tokens, prefilled or decoded, are computed in `seconds`.

        In no time nothing can be computed: then it is the most that the devices draw.
        """
        if not tokens:
            return self.power.idle_w
        if seconds <= 0:
            return self.power.max_w
        achieved = tokens * self.flops_per_token / seconds
        return self.power.watts(achieved / self.peak_flops_per_s)

    def joules(self, tokens: int, seconds: float) -> float:
        """Energy of as many tokens in as many seconds, idle power included."""
        return self.watts(tokens, seconds) * seconds


class DeclaredPower(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A power model as somebody declares it; of one device.

    Attributes:
        gpu: Named GPU (`NAMED_GPUS`) whose figures stand where none is given; null: all are given.
        idle_w: See `PowerModel`.
        max_w: See `PowerModel`.
        saturation: See `PowerModel`.
        gamma: See `PowerModel`.
        peak_flops_per_s: See `ModelledDevice`.
        flops_per_token: See `ModelledDevice`; null: derived from the model's parameters.
    """

    gpu: str | None = None
    idle_w: float | None = None
    max_w: float | None = None
    saturation: float | None = None
    gamma: float | None = None
    peak_flops_per_s: float | None = None
    flops_per_token: float | None = None


NAMED_GPUS = {
    "a100_sxm": DeclaredPower(idle_w=100.0, max_w=400.0, peak_flops_per_s=312e12),
    "h100_sxm": DeclaredPower(idle_w=60.0, max_w=700.0, peak_flops_per_s=989e12),
}
"""Nominal figures: idle and largest power as Vidur-Energy's authors configure them, and the dense
BF16 tensor-core rates that the maker states. None was checked on hardware: whoever decides by
joules declares what their own devices draw."""


def modelled_device(
    declared: str | Mapping[str, Any],
    *,
    flops_per_token: float | None = None,
    devices: int = 1,
) -> ModelledDevice:
    """The devices of a replica by a declared power model.

    Args:
        declared: Name of a GPU in `NAMED_GPUS`, or the fields of `DeclaredPower`.
        flops_per_token: Of the model, where the declaration does not say.
        devices: Devices of the replica, alike: their power and rates add up.

    Raises:
        PowerModelError: The name is unknown, a field is missing or unknown, or a figure is out of
            range.
    """
    fields = {"gpu": declared} if isinstance(declared, str) else dict(declared)
    try:
        # YAML takes 1e9 for text.
        given = msgspec.convert(fields, DeclaredPower, strict=False)
    except msgspec.ValidationError as error:
        raise PowerModelError(f"power model {fields}: {error}") from None
    base = DeclaredPower() if given.gpu is None else _named(given.gpu)
    own = {name: value for name in _OF_THE_DEVICE if (value := getattr(given, name)) is not None}
    figures = msgspec.structs.asdict(base) | own
    missing = [name for name in ("idle_w", "max_w", "peak_flops_per_s") if figures[name] is None]
    if missing:
        raise PowerModelError(
            f"power model {fields} lacks {', '.join(missing)}: declare them, or name a gpu out of "
            f"{', '.join(NAMED_GPUS)}"
        )
    flops = flops_per_token if given.flops_per_token is None else given.flops_per_token
    if flops is None:
        raise PowerModelError(
            f"power model {fields} lacks flops_per_token, and the model's parameters are not "
            "known: declare it, twice the parameters that a token passes through"
        )
    return ModelledDevice(
        name=given.gpu if given.gpu is not None and not own else "declared",
        power=PowerModel(
            idle_w=figures["idle_w"] * devices,
            max_w=figures["max_w"] * devices,
            saturation=SATURATION if given.saturation is None else given.saturation,
            gamma=GAMMA if given.gamma is None else given.gamma,
        ),
        peak_flops_per_s=figures["peak_flops_per_s"] * devices,
        flops_per_token=flops,
    )


_OF_THE_DEVICE = ("idle_w", "max_w", "saturation", "gamma", "peak_flops_per_s")


def _named(gpu: str) -> DeclaredPower:
    if gpu in NAMED_GPUS:
        return NAMED_GPUS[gpu]
    near = get_close_matches(gpu, NAMED_GPUS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(NAMED_GPUS)}"
    raise PowerModelError(
        f"no power figures of a GPU named {gpu!r}: {hint}; of others declare idle_w, max_w and "
        "peak_flops_per_s"
    )
