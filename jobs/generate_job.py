"""Offline generation: a file of prompts in, a folder of answers out, none lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterClient, ClusterLostError
from cluster.messages import ClusterStatus
from cluster.prompts import PromptEncoder
from jobs.reading.inputs import BadRow, JobInput, JobRow
from jobs.writing.outputs import OutputFullError, ResultRow, ResultWriter
from policies.request import RequestClass

READ_CHUNK = 64
"""Rows that are read and tokenized at a time, in a thread beside the event loop."""

FULL_DISK_RETRY_S = 10.0
"""Pause before a flush is tried again when there was no room for it."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How the rows of a job are generated.

    Attributes:
        max_tokens: Most output tokens of a row that does not say it itself.
        sampling: `vllm.SamplingParams` of rows that do not set them themselves.
        chat_template: Whether a prompt is put to the model as a user's chat message.
        token_ids: Whether the answers' token ids are written too.
        window: Rows in flight at once: what the policies can choose from.
        online: Submit as online requests, which stand before offline ones.
    """

    max_tokens: int
    sampling: dict[str, Any]
    chat_template: bool = True
    token_ids: bool = False
    window: int = 8192
    online: bool = False


@dataclass(slots=True)
class Progress:
    """What a job has done so far in this run."""

    finished: int = 0
    errors: int = 0
    output_tokens: int = 0
    disk_full: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that came to its end.

    Attributes:
        progress: What it did.
        wall_s: Seconds it took.
        interrupted: It was asked to stop; the rest is left for the next run.
        before: The cluster when it began.
        after: The cluster when it ended.
    """

    progress: Progress
    wall_s: float
    interrupted: bool
    before: ClusterStatus
    after: ClusterStatus


class GenerateJob:
    """Streams rows through the cluster into a writer.

    Memory is bounded by the window: rows are read and tokenized as others finish.

    Args:
        controller: The cluster's controller.
        source: Where the rows come from.
        writer: Where the results go; rows it has already are skipped.
        encoder: Makes tokens of prompts.
        options: How to generate.
        job_id: Prefix of the request ids; the same for every run of the job, so that a run which
            follows a killed one takes over what its predecessor left in the cluster.
        on_progress: Called after every change.
    """

    def __init__(
        self,
        controller: Any,
        source: JobInput,
        writer: ResultWriter,
        encoder: PromptEncoder,
        options: GenerateOptions,
        job_id: str,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._controller = controller
        self._writer = writer
        self._encoder = encoder
        self._options = options
        self._job_id = job_id
        self._on_progress = on_progress
        self._progress = Progress()
        self._rows: Iterator[JobRow | BadRow] = source.rows(skip=writer.finished)
        self._ended: asyncio.Queue[tuple[JobRow, Completion]] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._lost: ClusterLostError | None = None

    async def run(self) -> RunResult:
        """Generate everything that is not finished yet.

        Raises:
            ClusterLostError: The controller is gone; what has finished is written, the rest is left
                for the next run.
        """
        started_s = time.monotonic()
        with self._stop_on_signals():
            async with ClusterClient(self._controller) as client:
                before = await client.status()
                await self._stream(client)
                if self._lost is not None:
                    await asyncio.to_thread(self._writer.close)
                    raise self._lost
                after = await client.status()
        await asyncio.to_thread(self._writer.close)
        wall_s = time.monotonic() - started_s
        return RunResult(self._progress, wall_s, self._stopping, before, after)

    async def _stream(self, client: ClusterClient) -> None:
        exhausted = False
        while not self._stopping:
            room = self._options.window - len(self._running)
            if room > 0 and not exhausted and not self._progress.disk_full:
                chunk = await asyncio.to_thread(self._read, min(room, READ_CHUNK))
                exhausted = not chunk
                self._start(client, chunk)
                self._collect()
            elif self._running:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        self._record(*await self._ended.get())
                self._collect()
            elif not self._progress.disk_full:
                return
            else:
                await asyncio.sleep(FULL_DISK_RETRY_S)
            if self._writer.is_due() or self._progress.disk_full:
                await self._flush()
        for task in self._running:
            task.cancel()

    def _read(self, most: int) -> list[tuple[JobRow | BadRow, GenerationRequest | None]]:
        """The next rows with their requests; a row that cannot be encoded becomes a bad one."""
        chunk: list[tuple[JobRow | BadRow, GenerationRequest | None]] = []
        for row in itertools.islice(self._rows, most):
            if isinstance(row, BadRow):
                chunk.append((row, None))
                continue
            try:
                chunk.append((row, self._request(row)))
            except ValueError as error:
                chunk.append((row.failed(str(error)), None))
        return chunk

    def _request(self, row: JobRow) -> GenerationRequest:
        options = self._options
        sampling = {**options.sampling, **row.sampling}
        max_tokens = sampling.pop("max_tokens", options.max_tokens)
        prompt = row.messages if row.messages is not None else row.prompt
        assert prompt is not None, "a row has a prompt or messages"
        token_ids = self._encoder.encode(prompt, chat_template=options.chat_template)
        if not token_ids:
            raise ValueError("the prompt has no tokens, must have at least one")
        return GenerationRequest(
            request_id=f"{self._job_id}/{row.row_index}",
            prompt_token_ids=token_ids,
            max_tokens=max_tokens,
            sampling=sampling,
            request_class=RequestClass.ONLINE if options.online else RequestClass.OFFLINE,
        )

    def _start(
        self,
        client: ClusterClient,
        chunk: list[tuple[JobRow | BadRow, GenerationRequest | None]],
    ) -> None:
        for row, request in chunk:
            if isinstance(row, BadRow) or request is None:
                assert isinstance(row, BadRow)
                self._record_error(row)
                continue
            task = asyncio.create_task(self._generate(client, row, request))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _generate(
        self, client: ClusterClient, row: JobRow, request: GenerationRequest
    ) -> None:
        try:
            self._ended.put_nowait((row, await client.complete(request)))
        except ClusterLostError as error:
            self._lost = error
            self._stopping = True

    def _collect(self) -> None:
        while not self._ended.empty():
            self._record(*self._ended.get_nowait())

    def _record(self, row: JobRow, completion: Completion) -> None:
        if completion.finish_reason == "error":
            self._record_error(row.failed(completion.error))
            return
        self._writer.add(result_row(row, completion, self._encoder.model, self._options.token_ids))
        self._progress.finished += 1
        self._progress.output_tokens += len(completion.token_ids)
        self._on_progress(self._progress)

    def _record_error(self, bad: BadRow) -> None:
        self._writer.add_error(bad)
        self._progress.errors += 1
        self._on_progress(self._progress)

    async def _flush(self) -> None:
        """Make finished rows durable; with no room for them nothing new is read until there is."""
        try:
            await asyncio.to_thread(self._writer.flush)
            self._progress.disk_full = False
        except OutputFullError:
            self._progress.disk_full = True
        self._on_progress(self._progress)

    @contextlib.contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """On the first Ctrl-C or SIGTERM finish cleanly; a second one ends the process at once."""
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            self._stopping = True
            loop.remove_signal_handler(number)

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def result_row(row: JobRow, completion: Completion, model: str, token_ids: bool) -> ResultRow:
    """What the output says of a finished row."""
    forecast = completion.forecast
    return ResultRow(
        row_index=row.row_index,
        row_id=row.row_id,
        prompt=row.prompt_text,
        text=completion.text,
        token_ids=completion.token_ids if token_ids else None,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        output_tokens=len(completion.token_ids),
        queue_s=completion.queue_s,
        ttft_s=completion.ttft_s,
        latency_s=completion.latency_s,
        finished_unix_s=time.time(),
        replica=completion.replica_id,
        attempts=completion.attempts,
        evictions=completion.preemptions,
        recomputed_tokens=completion.recomputed_tokens,
        forecast_mu=forecast.mu if forecast else None,
        forecast_sigma=forecast.sigma if forecast else None,
        forecast_lower=forecast.lower if forecast else None,
        forecast_upper=forecast.upper if forecast else None,
        forecast_source=forecast.source if forecast else None,
        energy_joules=completion.energy_joules,
        energy_source=None,
        endpoint=row.batch_line.endpoint if row.batch_line else None,
        model=model,
    )
