"""The whole way with real engines: command line, Ray, two vLLM replicas on the CPU."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig
from cluster.messages import NAMESPACE
from cluster.prompts import PromptEncoder
from jobs.bench_throughput import run_direct
from jobs.cli import main
from policies.request import RequestClass
from tests.local_ray import joinable_cluster

# On a busy machine engines take minutes to start, and those of both fixtures are started here.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PROMPTS = Path(__file__).parents[2] / "jobs" / "data" / "demo_prompts.jsonl"
CONFIG = ClusterConfig()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()[:24]
    return [{**json.loads(line), "max_tokens": 64} for line in lines]


@pytest.fixture(scope="module")
def direct(rows: list[dict[str, Any]]) -> list[list[int]]:
    """The same prompts given to plain `vllm.LLM` engines."""
    encoder = PromptEncoder(CONFIG.model)
    return run_direct(CONFIG, [(encoder.encode(r["prompt"]), 64) for r in rows]).answers


@pytest.fixture(scope="module")
def controller(direct: list[list[int]]) -> Iterator[Any]:
    """A running cluster of two vLLM replicas; after `direct`, so that they do not share cores."""
    with joinable_cluster(CONFIG, num_cpus=2) as handle:
        yield handle


def test_the_cluster_answers_as_plain_vllm_does(
    controller: Any, rows: list[dict[str, Any]], direct: list[list[int]], tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ["--input", str(source), "--output", str(tmp_path / "out"), "--temperature", "0"]
    with pytest.raises(SystemExit) as ended:
        main(["generate", *arguments, "--token-ids", "--ordered"])
    assert ended.value.code == 0
    answers = pq.read_table(tmp_path / "out" / "output.parquet").to_pylist()
    assert [a["row_id"] for a in answers] == [r["id"] for r in rows]
    assert [a["token_ids"] for a in answers] == direct
    assert {a["replica"] for a in answers} == {"replica-0", "replica-1"}
    assert all(a["ttft_s"] <= a["latency_s"] for a in answers)


def test_a_killed_replica_changes_no_token(
    controller: Any, rows: list[dict[str, Any]], direct: list[list[int]]
) -> None:
    encoder = PromptEncoder(CONFIG.model)
    requests = [
        GenerationRequest(
            f"k{i}",
            encoder.encode(row["prompt"]),
            64,
            {"temperature": 0.0},
            request_class=RequestClass.OFFLINE,
        )
        for i, row in enumerate(rows)
    ]

    async def disturbed() -> list[Completion]:
        async with ClusterClient(controller) as client:
            tasks = [asyncio.create_task(client.complete(r)) for r in requests]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ray.kill(ray.get_actor("replica-0", namespace=NAMESPACE))
            return list(await asyncio.gather(*tasks))

    completions = asyncio.run(disturbed())
    assert any(c.attempts > 1 for c in completions), "the kill came too late to matter"
    assert [c.token_ids for c in completions] == direct
    assert all(not c.error for c in completions)
