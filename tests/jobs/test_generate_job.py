"""What a job asks the cluster for."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cluster.call import Completion, GenerationRequest
from cluster.client import ClusterLostError
from jobs.generate_job import LOOK_AGAIN_S, GenerateJob, GenerateOptions
from jobs.reading.rows import JobRow


class Rows:
    """Rows as a job reads them."""

    def __init__(self, *rows: JobRow) -> None:
        self._rows = rows

    def rows(self, skip: Any = None) -> Any:
        return iter(self._rows)


class Encoder:
    """One token per word."""

    model = "m"

    def encode(self, prompt: Any, *, chat_template: bool = True) -> list[int]:
        return [1] * len(str(prompt).split())


class Writer:
    """Keeps what ends; every flush takes its time."""

    def __init__(self, flush_s: float = 0.0) -> None:
        self.finished: set[int] = set()
        self.closed = False
        self._flush_s = flush_s

    def add(self, result: Any) -> None:
        self.finished.add(result.row_index)

    def is_due(self) -> bool:
        return True

    def flush(self) -> None:
        time.sleep(self._flush_s)

    def close(self) -> None:
        self.closed = True


class Client:
    """A cluster whose answers to rows 0, 1, ... are there after so many seconds."""

    def __init__(self, *answers_s: float, status_s: float = 0.0) -> None:
        self._answers_s = answers_s
        self._status_s = status_s

    async def complete(self, request: GenerationRequest) -> Completion:
        number = int(request.request_id.rpartition("/")[2])
        await asyncio.sleep(self._answers_s[number])
        return Completion(
            request_id=request.request_id,
            text="answer",
            token_ids=[1],
            finish_reason="stop",
            error="",
            prompt_tokens=1,
            queue_s=0.0,
            ttft_s=0.0,
            latency_s=0.0,
            replica_id="replica-0",
            attempts=1,
            preemptions=0,
            recomputed_tokens=0,
            forecast=None,
            energy_joules=1.0,
        )

    async def status(self) -> Any:
        await asyncio.sleep(self._status_s)
        energy = SimpleNamespace(source="model:declared")
        return SimpleNamespace(replicas=[SimpleNamespace(replica_id="replica-0", energy=energy)])


def make_job(rows: int, writer: Any) -> GenerateJob:
    source: Any = Rows(*(JobRow(row_index=i, row_id=str(i), prompt="word") for i in range(rows)))
    encoder: Any = Encoder()
    options = GenerateOptions(64, {})
    return GenerateJob(None, source, writer, encoder, options, "id", "job", lambda progress: None)


def test_each_request_carries_what_the_predictor_may_read() -> None:
    rows = [
        JobRow(row_index=0, row_id="a", prompt="Why is the sky blue?"),
        JobRow(row_index=1, row_id="b", messages=[{"role": "user", "content": "word " * 5000}]),
    ]
    source: Any = Rows(*rows)
    writer: Any = Writer()
    encoder: Any = Encoder()
    job = GenerateJob(
        None, source, writer, encoder, GenerateOptions(64, {}), "id", "job", lambda progress: None
    )
    requests = [request for _, request in job._read(10) if request is not None]
    assert [request.text for request in requests] == [row.excerpt for row in rows]
    assert {request.job for request in requests} == {"job"}
    assert requests[0].text == "Why is the sky blue?"
    assert len(requests[1].text) < 2100 < len(str(rows[1].messages))


def test_a_row_is_not_lost_while_the_controller_is_slow_to_tell_its_meter() -> None:
    writer = Writer()
    client: Any = Client(1.4 * LOOK_AGAIN_S, status_s=2 * LOOK_AGAIN_S)
    asyncio.run(make_job(1, writer)._stream(client))
    assert writer.finished == {0}


def test_a_row_that_ends_while_others_are_flushed_is_not_lost() -> None:
    writer = Writer(flush_s=0.2)
    client: Any = Client(0.6, 0.7)
    asyncio.run(make_job(2, writer)._stream(client))
    assert writer.finished == {0, 1}


def test_a_row_that_ends_in_a_defect_stops_the_job_instead_of_being_left_out() -> None:
    class Broken(Client):
        async def complete(self, request: GenerationRequest) -> Completion:
            if request.request_id.endswith("/1"):
                raise KeyError("a defect")
            return await super().complete(request)

    job, client = make_job(2, Writer()), Broken(60.0, 0.0)
    asyncio.run(job._stream(client))  # type: ignore[arg-type]
    assert isinstance(job._failure, KeyError)


def test_rows_of_earlier_runs_count_as_given() -> None:
    writer = Writer()
    writer.finished = {7, 8}
    job = make_job(3, writer)
    client: Any = Client(0.0, 0.0, 0.0)
    asyncio.run(job._stream(client))
    assert job._rows_given == 5


class Leaving(Client):
    """Its controller dies for good with the first row that is finished."""

    def __init__(self, writer: Writer, *answers_s: float) -> None:
        super().__init__(*answers_s)
        self._writer = writer

    async def __aenter__(self) -> Leaving:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def status(self) -> Any:
        if self._writer.finished:
            raise ClusterLostError("the controller is gone")
        return await super().status()


def test_what_came_before_the_controller_was_lost_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two answers are there when the loss of the third stops the job."""

    class Lost(Leaving):
        async def complete(self, request: GenerationRequest) -> Completion:
            if request.request_id.endswith("/2"):
                raise ClusterLostError("the controller is gone")
            return await super().complete(request)

    writer = Writer()
    client = Lost(writer, 0.0, 0.0, 0.0)
    monkeypatch.setattr("jobs.generate_job.ClusterClient", lambda controller: client)
    with pytest.raises(ClusterLostError):
        asyncio.run(make_job(3, writer).run())
    assert (writer.finished, writer.closed) == ({0, 1}, True)


@pytest.mark.parametrize("rows", [1, 2])
def test_what_ended_is_written_before_a_cluster_that_is_gone_is_asked_again(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two rows it is gone already when it is asked who has metered the second."""

    class Replaced(Leaving):
        async def complete(self, request: GenerationRequest) -> Completion:
            completion = await super().complete(request)
            number = request.request_id.rpartition("/")[2]
            return msgspec.structs.replace(completion, replica_id=f"replica-{number}")

    writer = Writer()
    client = Replaced(writer, 0.0, 0.2)
    monkeypatch.setattr("jobs.generate_job.ClusterClient", lambda controller: client)
    with pytest.raises(ClusterLostError):
        asyncio.run(make_job(rows, writer).run())
    assert (writer.finished, writer.closed) == (set(range(rows)), True)
