"""Rows of finished requests, read from what a cluster or a simulation wrote."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.simulated_rows import ROW_SCHEMA as SIMULATED_SCHEMA
from cluster.statistics.finished_row import ROW_SCHEMA
from jobs.errors import InputError
from policies.request import RequestClass

COLUMNS = ROW_SCHEMA.names
"""Columns of a table of rows; those of `FinishedRow`."""

ANSWERED = ("stop", "length")
"""Finish reasons of requests that were answered."""


def read_rows(path: Path) -> pd.DataFrame:
    """All rows of a file, or of a folder's files, with the columns of `FinishedRow`.

    A simulation's rows have virtual times, the name of their file (its load, policy and seed) for a
    policy, and neither tenant nor job.

    Args:
        path: A Parquet file, or a folder of `rows-*.parquet`.

    Raises:
        InputError: There is no such path, no row in it, or a file is none of rows.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    files = sorted(path.glob("rows-*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(
            f"{path}: no file rows-*.parquet: set statistics.rows to a folder before the cluster "
            "starts, or name the --out folder of `tiebreak simulate`"
        )
    tables = [_read(file) for file in files]
    rows = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    if rows.empty:
        raise InputError(f"{path}: no request has ended yet")
    return rows


def _read(file: Path) -> pd.DataFrame:
    try:
        names = set(pq.read_schema(file).names)
        if names >= set(COLUMNS):
            return _plain(pq.read_table(file, columns=COLUMNS))
        required = {n for n in SIMULATED_SCHEMA.names if "joules" not in n and "energy" not in n}
        if names >= required:
            return _simulated(pq.read_table(file), file.stem.removeprefix("rows-"))
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: cannot be read as Parquet: {error}") from None
    missing = ", ".join(sorted(set(COLUMNS) - names)[:3])
    raise InputError(f"{file}: is not a file of finished requests: no columns {missing}, ...")


def _plain(table: pa.Table) -> pd.DataFrame:
    rows: pd.DataFrame = table.to_pandas()
    for name, kind in rows.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype):
            rows[name] = rows[name].astype(object)
    return rows


def _simulated(table: pa.Table, policy: str) -> pd.DataFrame:
    rows: pd.DataFrame = table.to_pandas()
    arrival_s = rows["arrival_s"]
    is_cut = rows["output_tokens"] >= rows["max_tokens"]
    energy = {
        name: rows[name] if name in rows else float("nan")
        for name in ("energy_joules", "wasted_joules")
    }
    source = rows["energy_source"].astype(object) if "energy_source" in rows else None
    columns = pd.DataFrame(
        {
            "request_id": rows["request"].astype(str),
            "request_class": rows["request_class"].map(
                {int(c): c.name.lower() for c in RequestClass}
            ),
            "tenant": "",
            "job": "",
            "policy": policy,
            "arrival_unix_s": arrival_s,
            "forecast_s": 0.0,
            "dispatched_s": rows["dispatched_s"] - arrival_s,
            "first_token_s": rows["first_token_s"] - arrival_s,
            "finished_s": rows["finished_s"] - arrival_s,
            "prompt_tokens": rows["prompt_tokens"],
            "max_tokens": rows["max_tokens"],
            "output_tokens": rows["output_tokens"],
            "finish_reason": is_cut.map({True: "length", False: "stop"}),
            "forecast_mu": rows["mu"],
            "forecast_sigma": rows["sigma"],
            "forecast_lower": rows["lower"],
            "forecast_upper": rows["upper"],
            "forecast_source": "simulated",
            "replica_id": "replica-" + rows["replica"].astype(str),
            "attempts": 1,
            "evictions": rows["evictions"],
            "recalls": 0,
            "recomputed_tokens": rows["recomputed_tokens"],
            **energy,
            "energy_source": "none" if source is None else source.fillna("none"),
        }
    )
    return columns.reindex(columns=COLUMNS)
