"""Jobs on an object store that fails: pyarrow's own client, and a server that can be away."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http import HTTPStatus

import pyarrow.fs as pafs
import pytest

from jobs.errors import OutputError, OutputFullError
from jobs.writing.object_storage import ObjectStorage
from jobs.writing.outputs import ResultWriter
from jobs.writing.parts import finished_rows
from tests.jobs.factories import error, result, stored_errors, stored_results
from tests.jobs.object_store import DROPPED, ObjectStore, object_store


@pytest.fixture(autouse=True)
def outside_of_any_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # Without it, contents come in chunks with checksums, which the server would have to unpack.
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


def storage(store: ObjectStore, patience_s: float = 300.0) -> ObjectStorage:
    filesystem = pafs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="region",
        scheme="http",
        endpoint_override=store.address,
        # Its own attempts take six seconds, which nothing here is about.
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    return ObjectStorage(
        "s3://bucket/out", filesystem, "bucket/out", patience_s=patience_s, retry_s=0.01
    )


def put(storage: ObjectStorage, content: bytes) -> None:
    storage.write("parts/file", lambda out: out.write(content))


@pytest.mark.parametrize(
    "trouble",
    [
        [HTTPStatus.BAD_GATEWAY] * 3,
        [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.GATEWAY_TIMEOUT],
        [HTTPStatus.SERVICE_UNAVAILABLE] * 3,
        [HTTPStatus.INTERNAL_SERVER_ERROR] * 3,
        [DROPPED] * 3,
    ],
    ids=lambda trouble: f"{len(trouble)}x{trouble[0]}",
)
def test_a_store_that_is_away_is_waited_for(
    store: ObjectStore, trouble: list[int | str], caplog: pytest.LogCaptureFixture
) -> None:
    tried = storage(store)
    put(tried, b"before")
    store.trouble = list(trouble)
    put(tried, b"after")
    assert (store.refused, store.objects["bucket/out/parts/file"]) == (len(trouble), b"after")
    assert "s3://bucket/out: parts/file: " in caplog.text
    assert "nothing is lost, trying again for " in caplog.text


def test_reading_and_listing_wait_too(store: ObjectStore) -> None:
    tried = storage(store)
    put(tried, b"content")
    store.trouble = [HTTPStatus.BAD_GATEWAY] * 2
    assert tried.names("parts") == ["file"]
    store.trouble = [HTTPStatus.BAD_GATEWAY] * 2
    tried.delete("parts/file")
    assert (store.refused, tried.names("parts")) == (4, [])


def test_a_job_loses_no_row_to_a_store_that_is_away(store: ObjectStore) -> None:
    tried = storage(store)
    writer = ResultWriter(tried, rows_per_part=5)
    for i in range(7):
        store.trouble = [HTTPStatus.BAD_GATEWAY] * i
        writer.add(result(i))
        writer.add_error(error(100 + i))
        writer.flush()
    store.trouble = [HTTPStatus.BAD_GATEWAY] * 3
    writer.close()
    assert store.refused == 24
    assert stored_results(tried) == list(range(7))
    assert stored_errors(tried) == list(range(100, 107))
    assert len(finished_rows(storage(store))) == 14


def test_a_store_that_never_answered_is_a_wrong_address(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.trouble = [HTTPStatus.BAD_GATEWAY]
    with pytest.raises(OutputError, match=r"HTTP status 502.*; check the address, credentials"):
        put(storage(store), b"content")
    assert (store.refused, caplog.record_tuples) == (1, [])


@pytest.mark.parametrize(
    ("status", "kind"),
    [(HTTPStatus.FORBIDDEN, OutputError), (HTTPStatus.INSUFFICIENT_STORAGE, OutputFullError)],
)
def test_what_waiting_does_not_mend_is_told_at_once(
    store: ObjectStore, status: int, kind: type[OutputError], caplog: pytest.LogCaptureFixture
) -> None:
    tried = storage(store)
    put(tried, b"before")
    store.trouble = [status]
    with pytest.raises(OutputError) as caught:
        put(tried, b"after")
    assert (type(caught.value), store.refused, caplog.record_tuples) == (kind, 1, [])
    assert store.objects["bucket/out/parts/file"] == b"before"


def test_patience_ends(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    tried = storage(store, patience_s=2.0)
    put(tried, b"before")
    store.trouble = [HTTPStatus.BAD_GATEWAY] * 100_000
    with caplog.at_level(logging.WARNING), pytest.raises(OutputError, match="HTTP status 502"):
        put(tried, b"after")
    assert 1 <= len(caplog.records) < 1000
    store.trouble = []
    put(tried, b"after")
    assert store.objects["bucket/out/parts/file"] == b"after"
