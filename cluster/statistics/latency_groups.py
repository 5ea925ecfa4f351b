"""Percentiles by class, tenant, replica and policy, over windows of time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cluster.snapshot import Distribution, LatencyView
from cluster.statistics.finished_row import FinishedRow
from cluster.statistics.group_names import GroupNames
from cluster.statistics.sketch_grid import SLOTS, Floats, Ints, SketchGrid, percentiles
from policies.request import RequestClass

WINDOWS_S = (60, 300, 900)
"""Windows in seconds, each a multiple of the one before so that their slots end together."""

SINCE_START = 0
"""The window of everything since the controller's process started."""

MEASURES = ("queue_s", "ttft_s", "latency_s", "per_token_latency_s")
"""What percentiles are kept of. Latency per token is that of the whole request, its wait included,
by output token."""

SHARES = (0.5, 0.9, 0.99)

BATCH_ROWS = 256
"""Rows that are taken in together."""

_CLASSES = [c.name.lower() for c in RequestClass]


class LatencyGroups:
    """Takes finished requests in and answers with percentiles of each group and window.

    Args:
        policy: Name of the policy bundle, to which everything belongs.
        tenants: Most tenants with figures of their own; the others are added up.
        replicas: The same for replicas.
    """

    def __init__(self, policy: str, tenants: int, replicas: int) -> None:
        self._policy = policy
        longest_s = max(WINDOWS_S) * SLOTS / (SLOTS - 1)
        self._tenants = GroupNames(len(_CLASSES), tenants, longest_s)
        self._replicas = GroupNames(len(_CLASSES) + 1 + tenants, replicas, longest_s)
        groups = len(_CLASSES) + tenants + replicas + 2
        self._grids = {
            window_s: SketchGrid(groups, len(MEASURES), 4, window_s / (SLOTS - 1))
            for window_s in WINDOWS_S
        } | {SINCE_START: SketchGrid(groups, len(MEASURES), 4, None)}
        self._finest_s = WINDOWS_S[0] / (SLOTS - 1)
        self._slot = 0
        self._rows: list[tuple[int, int, int, tuple[float, ...], tuple[float, ...]]] = []

    def add(self, row: FinishedRow, now: float, *, is_timed: bool = True) -> None:
        """A request has ended.

        Args:
            row: Its row. Its durations count if it was answered.
            now: Seconds.
            is_timed: Whether the durations are known from its arrival on.
        """
        self._turn(now)
        tenant = self._place(self._tenants, row.tenant, now)
        replica = self._place(self._replicas, row.replica_id, now) if row.replica_id else -1
        is_answer = is_timed and row.finish_reason in ("stop", "length")
        values = _durations(row) if is_answer else (np.nan,) * len(MEASURES)
        tokens, joules = float(row.output_tokens), row.energy_joules
        sums = (1.0, tokens, joules or 0.0, 0.0 if joules is None else tokens)
        self._rows.append((_CLASSES.index(row.request_class), tenant, replica, values, sums))
        if len(self._rows) >= BATCH_ROWS:
            self._take_in()

    def views(self, now: float) -> list[LatencyView]:
        """Percentiles of each group that has had requests, in each window that has any."""
        self._turn(now)
        self._take_in()
        everything = list(range(len(_CLASSES)))
        groups = [("all", "all", everything), ("policy", self._policy, everything)]
        groups += [("class", name, [place]) for place, name in enumerate(_CLASSES)]
        groups += [("tenant", name, [place]) for name, place in self._tenants]
        groups += [("replica", name, [place]) for name, place in self._replicas]
        return [view for window_s in self._grids for view in self._window(window_s, groups)]

    def _window(
        self, window_s: int, groups: Sequence[tuple[str, str, list[int]]]
    ) -> Iterator[LatencyView]:
        grid = self._grids[window_s]
        sums = grid.sums()
        for by, name, places in groups:
            requests, tokens, joules, metered = sums[places].sum(axis=0).tolist()
            if requests:
                counts, totals = grid.sketches(places)
                measures = _distributions(counts, totals)
                yield LatencyView(
                    by, name, window_s, int(requests), int(tokens), joules, measures, int(metered)
                )

    def _place(self, names: GroupNames, name: str, now: float) -> int:
        place, is_taken = names.place(name, now)
        if is_taken:
            self._take_in()
            for grid in self._grids.values():
                grid.move(place, names.rest)
        return place

    def _turn(self, now: float) -> None:
        """Rows that wait to be taken in all belong to the slots that are filling."""
        slot = int(now // self._finest_s)
        if slot == self._slot:
            return
        self._take_in()
        self._slot = slot
        for grid in self._grids.values():
            grid.roll(now)

    def _take_in(self) -> None:
        if not self._rows:
            return
        classes, tenants, replicas, values, sums = zip(*self._rows, strict=True)
        self._rows.clear()
        group = np.array([classes, tenants, replicas]).ravel()
        known = group >= 0
        measured = np.tile(np.array(values, np.float64), (3, 1))[known]
        added = np.tile(np.array(sums, np.float64), (3, 1))[known]
        for grid in self._grids.values():
            grid.add(group[known], measured, added)


def _durations(row: FinishedRow) -> tuple[float, ...]:
    """The measures of a row in their order; NaN: it has none."""
    return (
        np.nan if row.dispatched_s is None else row.dispatched_s,
        np.nan if row.first_token_s is None else row.first_token_s,
        row.finished_s,
        row.finished_s / row.output_tokens if row.output_tokens else np.nan,
    )


def _distributions(counts: Ints, totals: Floats) -> dict[str, Distribution]:
    """Of each measure, from its sketch and its total."""
    values = percentiles(counts, SHARES).tolist()
    number = counts.sum(axis=-1).tolist()
    return {
        measure: Distribution(number[m], total / number[m], *values[m])
        if number[m]
        else Distribution()
        for m, (measure, total) in enumerate(zip(MEASURES, totals.tolist(), strict=True))
    }
