"""`tiebreak top` and `tiebreak why`: what they draw, and against a real cluster."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from collections.abc import Iterator

import msgspec
import pytest
from rich.console import Console

from cluster.call import GenerationRequest
from cluster.client import ClusterClient
from cluster.config import parse_config
from cluster.snapshot import ClusterSnapshot, EnergyView
from jobs.cli import main
from jobs.figures import duration, energy, meter
from jobs.top_screen import screen
from jobs.why import explained
from replicas.protocol import EnergyTotals
from tests.cluster.snapshots import (
    explanation,
    many,
    replica,
    snapshot,
    waiting,
    without_work,
)
from tests.local_ray import cluster_of


def drawn(
    taken: ClusterSnapshot | None, width: int = 80, height: int = 24, trouble: str = ""
) -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(screen(taken, width, height, trouble))
    return captured.get().splitlines()


@pytest.mark.parametrize("taken", [snapshot(), many(1000), many(1)], ids=["few", "many", "one"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
@pytest.mark.parametrize("trouble", ["", "the controller does not answer"])
def test_it_fits_the_terminal(
    taken: ClusterSnapshot, width: int, height: int, trouble: str
) -> None:
    lines = drawn(taken, width, height, trouble)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any("request-1 " in line and "waits for" in line for line in lines)
    assert any("faults" in line for line in lines)
    assert bool(trouble) == any(trouble in line for line in lines if trouble)


def test_the_fullest_replica_comes_first_with_its_memory_drawn() -> None:
    views = [
        replica("half", 512, 512, running=8),
        replica("over", 768, 1280, running=10, bottleneck="memory"),
    ]
    lines = drawn(snapshot(views))
    over = next(line for line in lines if line.startswith("over"))
    half = next(line for line in lines if line.startswith("half"))
    assert lines.index(over) < lines.index(half)
    assert "█" * 15 + "▒" * 5 in over
    assert "█" * 10 + "·" * 10 in half
    assert "768/1,024  1,280  10/16" in over
    assert "memory" in over
    assert "yes" in half


@pytest.mark.parametrize("request_id", ["r-[/x]-0", "r-[bold]-0"])
def test_an_id_that_a_client_chose_is_drawn_as_it_is(request_id: str) -> None:
    head = [waiting(1, request_id=request_id, reason=f"waits for {request_id}")]
    lines = drawn(snapshot(head=head), 200, 60)
    row = next(line for line in lines if line.lstrip().startswith("1 "))
    assert row.count(request_id) == 2


def test_what_does_not_fit_is_counted() -> None:
    assert any(line.startswith("and 99") for line in drawn(many(1000)))


def test_an_idle_cluster_and_one_that_has_not_answered() -> None:
    idle = snapshot(
        [without_work(replica("a"))],
        head=[],
        queues=[],
        latencies=[],
        faults={},
        energy=EnergyView(EnergyTotals(), []),
    )
    text = "\n".join(drawn(idle))
    for said in ("nothing waits", "no request has finished", "not measured", "none in"):
        assert said in text
    assert drawn(None, trouble="no cluster") == ["no cluster"]


def test_an_explanation_says_all_there_is() -> None:
    console = Console(width=100, color_system=None)
    told = explanation(job="night", recomputed_tokens=7, energy_joules=3.0, wasted_joules=1.0)
    told = msgspec.structs.replace(told, energy_source="model:a-gpu", position_is_exact=False)
    with console.capture() as captured:
        console.print(explained(told))
    text = " ".join(captured.get().split())
    for said in (
        "waits for memory: needs 84 blocks",
        "waiting, place about 1",
        "night",
        "median 148 tokens, interval 80 to 300, by learned",
        "0, 7 tokens computed again",
        "3 J, 1 J of it again, modelled, not measured (model:a-gpu)",
        "replicas considered, the best 2 of 3",
        "replica-1 memory 900 1,010 1,060 1,024 1",
        "40 ms forecast median 148",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (0.0034, "3.4 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.00 s"),
        (59.96, "60.0 s"),
        (125.0, "2 min 5 s"),
        (3599.6, "1 h 0 min"),
        (90_000.0, "25 h 0 min"),
        (300_000.0, "3 d 11 h"),
    ],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_energies_and_their_meters() -> None:
    assert [energy(joules) for joules in (None, 0.5, 1234.0, 25_000.0, 7.2e6)] == [
        "-",
        "0.5 J",
        "1,234 J",
        "25 kJ",
        "2 kWh",
    ]
    assert meter("none") == "not measured"
    assert meter("model:x") == "modelled, not measured (model:x)"
    assert meter("zeus:nvml") == "measured (zeus:nvml)"


# Against a cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    config = parse_config(
        {
            "replicas": {
                "engine": "simulated",
                "count": 1,
                "max_num_seqs": 1,
                "max_model_len": 8192,
            },
            "predictor": {"network": "none"},
        }
    )
    with cluster_of(config) as controller:
        yield controller


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    captured = capsys.readouterr()
    assert ended.value.code == status, captured.err
    return captured.out if status == 0 else captured.err


class Screen(io.StringIO):
    """A terminal whose reader presses Ctrl-C after some pictures."""

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self._pictures = pictures

    def write(self, text: str) -> int:
        written = super().write(text)
        if "faults" in text:
            self._pictures -= 1
            if not self._pictures:
                signal.raise_signal(signal.SIGINT)
        return written


def test_it_follows_the_cluster_until_ctrl_c(
    cluster: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen(2)
    terminal = Console(file=screen, force_terminal=True, width=80, height=24)
    monkeypatch.setattr("jobs.top.console", terminal)
    said(capsys, "top")
    assert screen.getvalue().count("KV memory") >= 2
    assert screen.getvalue().endswith("\x1b[?25h\x1b[?1049l")  # the terminal is as it was


async def test_they_show_a_running_cluster(
    cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    async with ClusterClient(cluster) as client:
        calls = [
            asyncio.create_task(
                client.complete(
                    GenerationRequest(
                        request_id=f"chat-{number}-unique-0",
                        prompt_token_ids=[1, 2, 3],
                        # So long that it still runs, and others wait, at the last look.
                        max_tokens=8000,
                        sampling={"extra_args": {"simulated_output_tokens": 8000}},
                    )
                )
            )
            for number in range(4)
        ]
        while not (head := (await client.snapshot()).head):
            await asyncio.sleep(0.1)
        waits = head[0].request_id
        picture = await asyncio.to_thread(said, capsys, "top", "--once")
        assert "replica-0" in picture
        assert "slots" in picture
        taken = json.loads(await asyncio.to_thread(said, capsys, "top", "--json"))
        assert taken["replicas"][0]["status"]["replica_id"] == "replica-0"
        why = await asyncio.to_thread(said, capsys, "why", waits)
        assert "waiting, place" in why
        assert "replica-0" in why
        known = json.loads(
            await asyncio.to_thread(said, capsys, "why", waits.removesuffix("-unique-0"), "--json")
        )
        assert known["request_id"] == waits
        unknown = await asyncio.to_thread(said, capsys, "why", "no-such", status=2)
        assert "nothing is known of request 'no-such'" in " ".join(unknown.split())
        for call in calls:
            call.cancel()
