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
from jobs.energy_budget import EnergyBudget
from jobs.reading.inputs import BadRow, JobRow
from jobs.reading.row_source import RowSource
from jobs.writing.outputs import OutputFullError, ResultRow, ResultWriter
from policies.request import RequestClass

READ_CHUNK = 64
"""Rows that are read and tokenized at a time, in a thread beside the event loop."""

LOOK_AGAIN_S = 0.5
"""Longest wait for a row to end before signals and the clock are looked at."""

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
        rows: Rows that the source gave, in this run and in earlier ones.
        paused: Why it stopped before all rows had ended, without being asked to; empty: it did not.
    """

    progress: Progress
    wall_s: float
    interrupted: bool
    before: ClusterStatus
    after: ClusterStatus
    rows: int
    paused: str = ""


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
        job: The job's name in the cluster's statistics.
        on_progress: Called after every change.
        budget: What the rows may cost; None: any amount of energy.
    """

    def __init__(
        self,
        controller: Any,
        source: RowSource,
        writer: ResultWriter,
        encoder: PromptEncoder,
        options: GenerateOptions,
        job_id: str,
        job: str,
        on_progress: Callable[[Progress], None],
        budget: EnergyBudget | None = None,
    ) -> None:
        self._controller = controller
        self._writer = writer
        self._encoder = encoder
        self._options = options
        self._job_id = job_id
        self._job = job
        self._on_progress = on_progress
        self._progress = Progress()
        self._rows: Iterator[JobRow | BadRow] = source.rows(skip=writer.finished)
        self._rows_given = len(writer.finished)
        self._ended: asyncio.Queue[tuple[JobRow, Completion]] = asyncio.Queue()
        self._running: dict[asyncio.Task[None], str] = {}
        self._budget = budget or EnergyBudget(None)
        self._sources: dict[str, str] = {}
        self._is_pausing = False
        self._paused = ""
        self._stopping = False
        self._failure: Exception | None = None

    async def run(self) -> RunResult:
        """Generate everything that is not finished yet.

        Raises:
            ClusterLostError: The controller is gone; what has finished is written, the rest is left
                for the next run.
            ConfigError: There is an energy budget, and nobody measures energy.
        """
        started_s = time.monotonic()
        with self._stop_on_signals():
            async with ClusterClient(self._controller) as client:
                await self._budget.check_meters(client)
                before = await client.status()
                self._note_sources(before)
                try:
                    await self._stream(client)
                finally:
                    # Whatever ended it, and before the cluster is asked again, which may be gone.
                    await self._collect(client)
                    await asyncio.to_thread(self._writer.close)
                if self._failure is not None:
                    raise self._failure
                after = await client.status()
        wall_s = time.monotonic() - started_s
        paused = "" if self._stopping else self._paused
        return RunResult(
            self._progress, wall_s, self._stopping, before, after, self._rows_given, paused
        )

    async def _stream(self, client: ClusterClient) -> None:
        exhausted = False
        while not self._stopping:
            room = self._options.window - len(self._running)
            if self._budget.is_spent and not self._is_pausing:
                exhausted = self._is_pausing = True
                await self._take_back(client)
            if room > 0 and not exhausted and not self._progress.disk_full:
                chunk = await asyncio.to_thread(self._read, min(room, READ_CHUNK))
                exhausted = not chunk
                self._start(client, chunk)
                await self._collect(client)
            # A task may have ended since the last look into the queue.
            elif self._running or not self._ended.empty():
                await self._wait_for_an_end(client)
                await self._collect(client)
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
            self._rows_given += 1
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
            text=row.excerpt,
            patient=True,
            job=self._job,
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
            self._running[task] = request.request_id
            task.add_done_callback(self._running.pop)

    async def _generate(
        self, client: ClusterClient, row: JobRow, request: GenerationRequest
    ) -> None:
        try:
            self._ended.put_nowait((row, await client.complete(request)))
        except Exception as error:  # raised by `run`: a row that ends nowhere would be lost
            self._failure = error
            self._stopping = True

    async def _take_back(self, client: ClusterClient) -> None:
        """The budget is spent: cancel what no replica has begun. What runs ends."""
        waiting = [task for task, name in self._running.items() if client.waits(name)]
        for task in waiting:
            task.cancel()
        if waiting or await asyncio.to_thread(next, self._rows, None) is not None:
            self._paused = "energy budget"

    async def _wait_for_an_end(self, client: ClusterClient) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                ended = await self._ended.get()
        except TimeoutError:
            return
        # Not within the timeout: it would lose the row.
        await self._record(client, *ended)

    async def _collect(self, client: ClusterClient) -> None:
        while not self._ended.empty():
            await self._record(client, *self._ended.get_nowait())

    def _note_sources(self, status: ClusterStatus) -> None:
        self._sources |= {r.replica_id: r.energy.source for r in status.replicas}

    async def _source(self, client: ClusterClient, completion: Completion) -> str | None:
        """Who metered an answer; None: nobody, or the cluster that knows it is gone."""
        if completion.energy_joules is None:
            return None
        if completion.replica_id not in self._sources:  # it has come since
            with contextlib.suppress(ClusterLostError):
                self._note_sources(await client.status())
        return self._sources.get(completion.replica_id)

    async def _record(self, client: ClusterClient, row: JobRow, completion: Completion) -> None:
        if completion.replica_id:
            self._budget.spend(completion.energy_joules)
        if completion.finish_reason == "error":
            self._record_error(row.failed(completion.error))
            return
        source = await self._source(client, completion)
        model, token_ids = self._encoder.model, self._options.token_ids
        self._writer.add(result_row(row, completion, model, token_ids, source))
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


def result_row(
    row: JobRow, completion: Completion, model: str, token_ids: bool, energy_source: str | None
) -> ResultRow:
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
        wasted_joules=completion.wasted_joules,
        energy_source=energy_source,
        endpoint=row.batch_line.endpoint if row.batch_line else None,
        model=model,
    )
