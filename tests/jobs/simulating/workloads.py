"""Workloads and what they hold, for the tests of how they are made."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.workload import WorkloadChunk
from jobs.simulating.arrivals import Arrivals, GammaArrivals
from jobs.simulating.castillo import castillo_folder
from jobs.simulating.lengths import Lengths, LogTLengths
from jobs.simulating.traces import TraceFile
from jobs.simulating.truth import Truth
from jobs.simulating.workload import WorkloadSpec

LOG_T = LogTLengths()
POISSON = GammaArrivals(100.0)

needs_castillo = pytest.mark.skipif(
    not (castillo_folder() / "validate.parquet").is_file(),
    reason="CASTILLO is not there; set TIEBREAK_DATA to the folder that holds castillo/",
)
AZURE = castillo_folder().parent / "traces" / "azure_llm_2023_conversation.csv"
needs_azure = pytest.mark.skipif(
    not AZURE.is_file(),
    reason="the Azure trace is not there; set TIEBREAK_DATA to the folder that holds traces/",
)


def spec(
    requests: int = 1000, lengths: Lengths = LOG_T, arrivals: Arrivals = POISSON, **more: Any
) -> WorkloadSpec:
    return WorkloadSpec(requests, lengths, arrivals, **more)


def joined(chunks: Iterable[WorkloadChunk]) -> WorkloadChunk:
    """All chunks as one."""
    return functools.reduce(WorkloadChunk.merged, chunks)


def columns_of(chunks: Iterable[WorkloadChunk], *names: str) -> list[bytes]:
    """The bytes of some columns, or of all."""
    chunk = joined(chunks)
    columns = [getattr(chunk, name) for name in names or [f.name for f in fields(chunk)]]
    return [column.tobytes() for column in columns if column is not None]


def truth(
    output_tokens: Sequence[int], max_tokens: int = 4096, mu: Any = None, sigma: Any = None
) -> Truth:
    outputs = np.asarray(output_tokens, np.int64)
    return Truth(
        prompt_tokens=np.full_like(outputs, 100),
        max_tokens=np.full_like(outputs, max_tokens),
        output_tokens=outputs,
        mu=mu,
        sigma=sigma,
    )


def azure_file(folder: Path, rows: Iterable[tuple[Any, Any, Any]]) -> TraceFile:
    path = folder / "trace.csv"
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return TraceFile(str(path))


def lines_file(folder: Path, rows: Iterable[Mapping[str, Any]]) -> TraceFile:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TraceFile(str(path))


def castillo_file(folder: Path, rows: Iterable[tuple[str, int, list[int]]]) -> str:
    model, prompt_tokens, output_tokens = zip(*rows, strict=True)
    table = pa.table(
        {
            "model": pa.array(model).dictionary_encode(),
            "prompt_tokens": pa.array(prompt_tokens, pa.int32()),
            "output_tokens": pa.array(output_tokens, pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, folder / "validate.parquet")
    return str(folder)
