"""Reports of waiting requests over a real socket, from this process and from a child."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicas import stall_reports
from replicas.protocol import Stalled
from replicas.stall_reports import (
    DATAGRAM_BYTES,
    SOCKET_VARIABLE,
    StallListener,
    StallReporter,
    decode,
    encode,
)

ONE = {"a": Stalled(5, 1)}
OTHER = {"b": Stalled(0, 0), "a": Stalled(7, 2)}


@contextlib.contextmanager
def listening() -> Iterator[StallListener]:
    listener = StallListener()
    try:
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def reporting() -> Iterator[StallReporter]:
    reporter = StallReporter.from_environment()
    assert reporter is not None, "the listener names its socket in the environment"
    try:
        yield reporter
    finally:
        reporter.close()


async def change(listener: StallListener) -> dict[str, Stalled]:
    """What the next report brings."""
    async with asyncio.timeout(30):
        await listener.changed.wait()
    listener.changed.clear()
    return listener.latest


async def settled() -> None:
    """Let the loop read all that has been sent."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_report_replaces_the_one_before() -> None:
    with listening() as listener, reporting() as reporter:
        for stalled in (ONE, OTHER, {}, ONE):
            reporter.send(stalled)
            assert await change(listener) == stalled


async def test_the_order_of_the_requests_is_kept() -> None:
    with listening() as listener, reporting() as reporter:
        reporter.send(OTHER)
        assert list(await change(listener)) == ["b", "a"]


async def test_nothing_is_sent_while_nothing_changes() -> None:
    with listening() as listener, reporting() as reporter:
        reporter.send(ONE)
        assert await change(listener) == ONE
        listener.forget(["a"])
        listener.changed.clear()
        reporter.send(dict(ONE))
        await settled()
        assert not listener.changed.is_set()


async def test_a_set_that_its_owner_changes_later_is_sent_again() -> None:
    with listening() as listener, reporting() as reporter:
        growing = dict(ONE)
        reporter.send(growing)
        assert await change(listener) == ONE
        growing["c"] = Stalled(1, 1)
        reporter.send(growing)
        assert await change(listener) == ONE | {"c": Stalled(1, 1)}


async def test_reports_of_the_same_set_do_not_wake_anybody() -> None:
    with listening() as listener, reporting() as first, reporting() as second:
        first.send(ONE)
        assert await change(listener) == ONE
        second.send(ONE)
        await settled()
        assert not listener.changed.is_set()


async def test_a_full_socket_never_blocks_and_the_next_call_makes_up_for_it() -> None:
    with listening() as listener, reporting() as reporter:
        # The loop does not run meanwhile, so nobody reads.
        sent = [reporter.send({"a": Stalled(number, 1)}) for number in range(10_000)]
        assert sent[0]
        assert not sent[-1], "the socket was never full"
        assert sent == sorted(sent, reverse=True)
        received = await change(listener)
        await settled()
        assert received == listener.latest == {"a": Stalled(sum(sent) - 1, 1)}
        listener.changed.clear()
        assert reporter.send({"a": Stalled(9_999, 1)})
        assert await change(listener) == {"a": Stalled(9_999, 1)}


async def test_only_the_latest_of_several_reports_counts() -> None:
    with listening() as listener, reporting() as reporter:
        reporter.send(ONE)
        reporter.send(OTHER)
        assert await change(listener) == OTHER
        await settled()
        assert not listener.changed.is_set()


async def test_more_requests_than_a_datagram_holds_are_cut_to_the_first() -> None:
    ids = [f"request-{number:032d}" for number in range(5_000)]
    with listening() as listener, reporting() as reporter:
        reporter.send({i: Stalled(1 << 20, 3) for i in ids})
        received = list(await change(listener))
        assert received == ids[: len(received)]
        assert len(received) > 1_000


@given(
    stalled=st.dictionaries(
        st.text(min_size=1, max_size=40),
        st.builds(Stalled, st.integers(0, 1 << 40), st.integers(0, 100)),
    ),
    copies=st.integers(1, 400),
)
def test_a_datagram_is_a_prefix_as_long_as_fits(stalled: dict[str, Stalled], copies: int) -> None:
    many = {f"{i}/{copy}": s for copy in range(copies) for i, s in stalled.items()}
    datagram = encode(many)
    received = decode(datagram)
    assert len(datagram) <= DATAGRAM_BYTES
    assert list(received.items()) == list(many.items())[: len(received)]
    if len(received) < len(many):
        assert len(datagram) > DATAGRAM_BYTES * 0.8


async def test_a_listener_s_aborted_request_is_forgotten() -> None:
    with listening() as listener, reporting() as reporter:
        reporter.send(OTHER)
        await change(listener)
        listener.forget(["nobody"])
        assert not listener.changed.is_set()
        listener.forget(["nobody", "a"])
        assert await change(listener) == {"b": Stalled(0, 0)}


async def test_without_a_listener_there_is_no_reporter() -> None:
    assert StallReporter.from_environment() is None
    with listening():
        assert SOCKET_VARIABLE in os.environ
    assert SOCKET_VARIABLE not in os.environ
    assert StallReporter.from_environment() is None


async def test_a_reporter_outlives_its_listener(caplog: pytest.LogCaptureFixture) -> None:
    listener = StallListener()
    with reporting() as reporter:
        reporter.send(ONE)
        listener.close()
        with caplog.at_level(logging.WARNING):
            for tokens in range(3):
                assert not reporter.send({"a": Stalled(tokens, 1)})
    # Others may log meanwhile, such as a collected task of an earlier test.
    (warning,) = (r for r in caplog.records if r.name == stall_reports.__name__)
    assert warning.levelname == "WARNING"
    assert "No such file" in warning.getMessage()


def test_a_stale_socket_file_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/stalled"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as former:
            former.bind(path)
        monkeypatch.setenv(SOCKET_VARIABLE, path)
        with reporting() as reporter:
            reporter.send(ONE)
    assert "refused" in caplog.text


async def test_a_reporter_goes_on_when_somebody_listens_again() -> None:
    with listening():
        path = os.environ[SOCKET_VARIABLE]
    reporter = StallReporter(path)
    reporter.send(ONE)
    Path(path).parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as successor:
        successor.bind(path)
        successor.settimeout(30)
        reporter.send(ONE)
        assert decode(successor.recv(DATAGRAM_BYTES)) == ONE
    reporter.close()
    Path(path).unlink()
    Path(path).parent.rmdir()


async def test_a_restarted_engine_s_first_report_counts_even_when_nothing_waits() -> None:
    with listening() as listener:
        with reporting() as former:
            former.send(ONE)
            assert await change(listener) == ONE
        with reporting() as restarted:
            restarted.send({})
            assert await change(listener) == {}


async def test_a_later_listener_keeps_its_place_in_the_environment() -> None:
    earlier, later = StallListener(), StallListener()
    earlier.close()
    with reporting() as reporter:
        reporter.send(ONE)
        assert await change(later) == ONE
    later.close()
    assert SOCKET_VARIABLE not in os.environ


async def test_what_cannot_be_read_leaves_the_listener_listening() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    with listening() as listener, reporting() as reporter:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"\xc1", os.environ[SOCKET_VARIABLE])
        await settled()
        reporter.send(ONE)
        assert await change(listener) == ONE


async def test_a_long_folder_for_temporary_files_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with listening() as listener, reporting() as reporter:
        reporter.send(ONE)
        assert await change(listener) == ONE


async def test_nothing_is_left_behind() -> None:
    with listening():
        folder = Path(os.environ[SOCKET_VARIABLE]).parent
        assert folder.stat().st_mode & 0o077 == 0, "others may write to it"
    assert not folder.exists()


async def test_a_child_process_inherits_the_way() -> None:
    code = (
        "from replicas.protocol import Stalled\n"
        "from replicas.stall_reports import StallReporter\n"
        "reporter = StallReporter.from_environment()\n"
        "reporter.send({'child': Stalled(3, 2)})\n"
    )
    with listening() as listener:
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=True)
        assert await change(listener) == {"child": Stalled(3, 2)}
