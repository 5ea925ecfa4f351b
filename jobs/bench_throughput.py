"""The cluster against plain vLLM: the same prompts, engines pinned and configured alike."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from rich.table import Table

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import ClusterConfig
from cluster.lifecycle import running_cluster
from cluster.membership.engine_choice import engine_spec
from cluster.prompts import PromptEncoder
from jobs.reading.inputs import JobRow, open_input
from policies.request import RequestClass

Work = list[tuple[list[int], int]]
"""Prompts as token ids, each with its `max_tokens`."""


class Arm(msgspec.Struct):
    """One arm's outcome: seconds for all prompts, and the answers in their order."""

    wall_s: float
    answers: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of all engines together."""
        return sum(map(len, self.answers)) / self.wall_s


def compare(config: ClusterConfig, input_uri: str, max_tokens: int, rounds: int) -> Table:
    """Run both arms in turn and tell their throughputs, ratio and whether the answers agree."""
    work = work_of(config, input_uri, max_tokens)
    table = Table(
        title=f"{len(work):,} prompts, greedy, {config.replicas.count} engines of {config.model}",
        title_justify="left",
    )
    for column in ("round", "vllm.LLM tokens/s", "cluster tokens/s", "ratio", "equal answers"):
        table.add_column(column, justify="right")
    for number in range(1, rounds + 1):
        direct, cluster = run_direct(config, work), _cluster(config, work)
        equal = sum(a == b for a, b in zip(direct.answers, cluster.answers, strict=True))
        table.add_row(
            str(number),
            f"{direct.tokens_per_s:,.1f}",
            f"{cluster.tokens_per_s:,.1f}",
            f"{cluster.tokens_per_s / direct.tokens_per_s:.3f}",
            f"{equal:,} of {len(work):,}",
        )
    return table


def work_of(config: ClusterConfig, input_uri: str, max_tokens: int) -> Work:
    """The prompts of a file, each with its own cap or this one."""
    encoder = PromptEncoder(config.model)
    return [
        (
            encoder.encode(row.messages if row.messages is not None else row.prompt or ""),
            int(row.sampling.get("max_tokens", max_tokens)),
        )
        for row in open_input(input_uri).rows()
        if isinstance(row, JobRow)
    ]


def _cluster(config: ClusterConfig, work: Work) -> Arm:
    """All prompts at once through a fresh cluster."""
    with running_cluster(config) as (controller, _):
        return asyncio.run(run_through(ClusterClient(controller), work))


async def run_through(client: ClusterClient, work: Work) -> Arm:
    """All prompts at once, as offline requests, through a client that was not entered yet.

    Raises:
        RuntimeError: One failed.
    """
    async with client:
        started = time.perf_counter()
        completions = await asyncio.gather(
            *(
                client.complete(
                    GenerationRequest(
                        f"bench/{i}",
                        prompt,
                        cap,
                        {"temperature": 0.0},
                        request_class=RequestClass.OFFLINE,
                    )
                )
                for i, (prompt, cap) in enumerate(work)
            )
        )
        wall_s = time.perf_counter() - started
    failed = [c.error for c in completions if c.error]
    if failed:
        raise RuntimeError(f"{len(failed)} prompts failed, the first with: {failed[0]}")
    return Arm(wall_s, [c.token_ids for c in completions])


def run_direct(config: ClusterConfig, work: Work) -> Arm:
    """The prompts dealt in turn to one `vllm.LLM` process per replica, started together."""
    count, each = config.replicas.count, config.replicas.cpus_per_replica
    spec = engine_spec(config, on_gpu=False, plain=True)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for index in range(count):
            pinned = [str(cores[(index * each + k) % len(cores)]) for k in range(each)]
            job = {"model": spec.model, "args": spec.args, "work": work[index::count]}
            (Path(folder) / f"{index}.in").write_text(json.dumps(job), encoding="utf-8")
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "jobs.bench_throughput", folder, str(index)],
                    env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": ",".join(pinned)},
                    stdout=subprocess.DEVNULL,
                )
            )
        _await_files(folder, "ready", count, processes)
        started = time.perf_counter()
        (Path(folder) / "go").touch()
        _await_files(folder, "out", count, processes)
        wall_s = time.perf_counter() - started
        answers: list[list[int]] = [[] for _ in work]
        for index, process in enumerate(processes):
            process.wait()
            answers[index::count] = json.loads((Path(folder) / f"{index}.out").read_text())
        return Arm(wall_s, answers)


def _await_files(
    folder: str, suffix: str, count: int, processes: list[subprocess.Popen[bytes]]
) -> None:
    while len(list(Path(folder).glob(f"*.{suffix}"))) < count:
        if any(process.poll() not in (None, 0) for process in processes):
            raise RuntimeError("an engine of the reference arm has died; its output says why")
        time.sleep(0.01)


def _engine_process(folder: Path, index: int) -> None:
    """One engine of the reference arm: load, wait for the start, generate, write the answers."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, SamplingParams, TokensPrompt

    job = json.loads((folder / f"{index}.in").read_text(encoding="utf-8"))
    engine = LLM(model=job["model"], **job["args"])
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids, _ in job["work"]]
    params = [SamplingParams(temperature=0.0, max_tokens=cap) for _, cap in job["work"]]
    (folder / f"{index}.ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    outputs = engine.generate(prompts, params, use_tqdm=False)
    written = folder / f"{index}.tmp"
    written.write_text(json.dumps([list(o.outputs[0].token_ids) for o in outputs]))
    written.rename(folder / f"{index}.out")


if __name__ == "__main__":
    _engine_process(Path(sys.argv[1]), int(sys.argv[2]))
