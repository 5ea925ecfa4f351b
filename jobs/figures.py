"""How durations, energies and meters are written for people in a terminal."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them, such as `34 ms` or `2 min 5 s`; `-`: not known."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return "0 s" if seconds < 5e-5 else f"{1000 * seconds:.{1 if seconds < 0.0095 else 0}f} ms"
    if seconds < 99.5:
        return f"{seconds:.{2 if seconds < 9.95 else 1}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def energy(joules: float | None) -> str:
    """Joules in the unit that suits them; `-`: not known."""
    if joules is None:
        return "-"
    if joules >= 3.6e6:
        return f"{joules / 3.6e6:.3g} kWh"
    return f"{joules / 1000:,.4g} kJ" if joules >= 1e4 else f"{joules:,.4g} J"


def meter(source: str) -> str:
    """What a meter is, so that a modelled joule is never taken for a measured one."""
    if source in ("none", ""):
        return "not measured"
    kind = "modelled, not measured" if source.startswith("model:") else "measured"
    return f"{kind} ({source})"
