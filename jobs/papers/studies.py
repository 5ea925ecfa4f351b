"""All studies, in the order of the page."""

from __future__ import annotations

from jobs.papers import (
    a_min_table,
    ablations,
    beyond,
    forecasts,
    goodness_of_fit,
    tie_offline,
    tie_online,
    withheld,
)
from jobs.papers.study import Study


def all_studies() -> list[Study]:
    """The studies with the sizes of `make papers`."""
    return [
        goodness_of_fit.study(),
        a_min_table.study(),
        tie_online.study(),
        tie_offline.study(),
        beyond.study(),
        ablations.study(),
        forecasts.study(),
        withheld.study(),
    ]
