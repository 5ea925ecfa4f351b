"""What hardware draws without work."""

from __future__ import annotations

WINDOW_S = 1.0
"""Shortest time without work whose mean power is believed: counters are updated in steps."""


class IdlePower:
    """Declared, or the lowest mean power over a while without work.

    Measured power is 0 until there has been such a while: energy is then booked to work in full.

    Args:
        declared_w: Watts; None: measure them.
    """

    def __init__(self, declared_w: float | None = None) -> None:
        self._declared_w = declared_w
        self._lowest_w: float | None = None
        self._since: tuple[float, float] | None = None

    @property
    def watts(self) -> float:
        """Watts without work, as far as they are known."""
        if self._declared_w is not None:
            return self._declared_w
        return self._lowest_w or 0.0

    def seen(self, at_s: float, joules: float, *, is_idle: bool) -> None:
        """A meter read `joules` in all at `at_s`, and nothing was done since the reading before."""
        if not is_idle:
            self._since = None
            return
        if self._since is None:
            self._since = at_s, joules
            return
        begin_s, begin_joules = self._since
        if at_s - begin_s >= WINDOW_S:
            power_w = (joules - begin_joules) / (at_s - begin_s)
            self._lowest_w = power_w if self._lowest_w is None else min(power_w, self._lowest_w)
            self._since = at_s, joules
