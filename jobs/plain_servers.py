"""The servers that the gateway is measured against: vLLM's own, and the least that Serve needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from cluster.config import ClusterConfig
from cluster.membership.engine_choice import engine_spec
from jobs.known_answers import LENGTH_OPTION
from replicas.delivery_pace import DeliveryPace
from replicas.protocol import Delta, Generation, pack_tokens
from replicas.simulated_engine import SimulatedEngine, SimulatedEngineOptions

START_S = 300.0
"""How long vLLM's server may take to load."""

PLAIN = "plain"
"""Name of the Serve application."""


class ServerError(RuntimeError):
    """A server to compare with did not come up; the message has its last words."""


@contextlib.contextmanager
def vllm_server(config: ClusterConfig) -> Iterator[str]:
    """VLLM's own server over one engine, pinned and configured as a replica; its address.

    Raises:
        ServerError: It did not come up.
    """
    spec = engine_spec(config, on_gpu=False, plain=True)
    cores = sorted(os.sched_getaffinity(0))[: config.replicas.cpus_per_replica]
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    command += ["--model", spec.model, "--served-model-name", config.model, *flags(spec.args)]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _healthy(url, process):
                log.seek(0)
                words = log.read().decode(errors="replace").strip().splitlines()[-5:]
                raise ServerError("vLLM's server did not come up: " + "\n".join(words))
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as options of vLLM's server."""
    words = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words


def _healthy(url: str, process: subprocess.Popen[bytes]) -> bool:
    until_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until_s:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/health", timeout=5) as answer,
        ):
            return bool(answer.status == 200)
        time.sleep(0.5)
    return False


def free_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


class PlainDeployment:
    """A simulated engine behind Serve and nothing else: no tokenizer, no checks, no scheduler.

    Tokens keep each other company for as long as a replica has them wait.

    Args:
        options: Of `SimulatedEngineOptions`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = SimulatedEngineOptions(**options)
        self._engine = SimulatedEngine(self._options)
        self._streams: dict[str, asyncio.Queue[Delta]] = {}
        self._number = 0
        self._pump: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> StreamingResponse:
        """Answer a request in the form of `/v1/completions`, as a stream."""
        if self._pump is None:
            self._pump = asyncio.create_task(self._deliver())
            await self._engine.start()
        body = await request.json()
        self._number += 1
        name = str(self._number)
        self._streams[name] = asyncio.Queue()
        sampling = {"max_tokens": body["max_tokens"], "extra_args": body["vllm_xargs"]}
        assert LENGTH_OPTION in sampling["extra_args"]
        generation = Generation(name, "", pack_tokens(body["prompt"]), sampling=sampling)
        await self._engine.submit([generation])
        return StreamingResponse(self._answer(name), media_type="text/event-stream")

    async def _answer(self, name: str) -> AsyncIterator[str]:
        tokens = 0
        try:
            while True:
                delta = await self._streams[name].get()
                tokens += len(delta.token_ids)
                choice = {"index": 0, "text": delta.text, "finish_reason": delta.finish_reason}
                event: dict[str, Any] = {"id": name, "choices": [choice]}
                if delta.finish_reason is not None:
                    event["usage"] = {"completion_tokens": tokens}
                yield f"data: {json.dumps(event)}\n\n"
                if delta.finish_reason is not None:
                    yield "data: [DONE]\n\n"
                    return
        finally:
            del self._streams[name]
            await self._engine.abort([name])

    async def _deliver(self) -> None:
        pace = DeliveryPace(self._engine)
        while True:
            await pace.due(len(self._streams), read_along=True)
            for delta in self._engine.drain():
                if delta.request_id in self._streams:
                    self._streams[delta.request_id].put_nowait(delta)


@contextlib.contextmanager
def plain_serve(options: Mapping[str, Any]) -> Iterator[str]:
    """The deployment behind Serve's own proxy, in the Ray that is connected; its address."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment: Any = serve.deployment(
        PlainDeployment, max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 0}
    )
    serve.run(deployment.bind(options), name=PLAIN, route_prefix="/")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.delete(PLAIN)
        serve.shutdown()
