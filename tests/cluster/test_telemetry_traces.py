"""Requests as spans: their ids, their phases, and how they come to a collector."""

from __future__ import annotations

import socket
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ClusterConfig, parse_config
from cluster.snapshot import Event
from cluster.telemetry.engine_traces import engine_arguments, engine_environment
from cluster.telemetry.request_spans import Span, phases
from cluster.telemetry.telemetry import Telemetry
from cluster.telemetry.trace_context import parse_traceparent, trace_context
from cluster.telemetry.traces import Traces
from tests.cluster.collector import attributes, collector
from tests.cluster.rows import EVENTS, row, submission

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def config(endpoint: str, **fields: object) -> ClusterConfig:
    told = {"otlp_endpoint": endpoint, "otlp_protocol": "http/protobuf", **fields}
    return parse_config({"model": "a-model", "telemetry": told})


class TestContext:
    def test_a_callers_span_is_the_parent(self) -> None:
        context = trace_context(submission(trace=PARENT), share=0)
        assert context.trace_id == 0x4BF92F3577B34DA6A3CE929D0E0E4736
        assert context.parent_id == 0x00F067AA0BA902B7
        assert context.is_sampled
        assert context.span_id not in (0, context.parent_id)

    def test_its_word_on_sampling_is_followed(self) -> None:
        unsampled = PARENT.removesuffix("01") + "00"
        assert not trace_context(submission(trace=unsampled), share=1).is_sampled

    def test_engines_are_told_the_span_that_is_built_at_the_end(self) -> None:
        context = trace_context(submission(trace=PARENT), share=1)
        told = parse_traceparent(context.traceparent)
        assert told == (context.trace_id, context.span_id, True)
        assert trace_context(submission(trace=PARENT), share=1) == context

    def test_the_same_id_from_another_client_is_another_trace(self) -> None:
        one, other = (trace_context(submission(client=c), share=1) for c in ("one", "other"))
        assert one.trace_id != other.trace_id
        assert one.span_id != other.span_id

    def test_a_share_of_the_requests_is_traced(self) -> None:
        traced = [trace_context(submission(f"request-{n}"), 0.25).is_sampled for n in range(2000)]
        assert 400 < sum(traced) < 600
        assert not any(trace_context(submission(f"r{n}"), 0.0).is_sampled for n in range(50))
        assert all(trace_context(submission(f"r{n}"), 1.0).is_sampled for n in range(50))

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "00-0-0-01",
            PARENT.upper(),
            PARENT.replace("00-4b", "ff-4b"),
            f"00-{'0' * 32}-00f067aa0ba902b7-01",
            f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
            PARENT + "-more",
        ],
    )
    def test_what_is_no_traceparent_begins_a_trace_of_its_own(self, header: str) -> None:
        assert parse_traceparent(header) is None
        assert trace_context(submission(trace=header), share=1).parent_id is None

    def test_a_later_version_may_say_more(self) -> None:
        assert parse_traceparent(PARENT.replace("00-4b", "01-4b") + "-more") is not None


class TestPhases:
    def names(self, spans: list[Span]) -> list[tuple[str, float, float]]:
        return [(span.name, span.start_s, span.end_s) for span in spans]

    def test_of_a_request_that_ran_once(self) -> None:
        assert self.names(phases(row(), EVENTS)) == [
            ("forecast", 0.0, 0.25),
            ("queue", 0.0, 0.5),
            ("prefill", 0.5, 1.0),
            ("decode", 1.0, 3.0),
        ]

    def test_of_one_that_was_lost_before_its_first_token_and_recalled_after_it(self) -> None:
        events = [
            Event(0.0, "arrived"),
            Event(1.0, "dispatched", "replica-0"),
            Event(2.0, "lost", "replica-0"),
            Event(3.0, "dispatched", "replica-1"),
            Event(4.0, "first token"),
            Event(5.0, "recalled", "replica-1"),
            Event(6.0, "dispatched", "replica-2"),
            Event(9.0, "finished", "stop"),
        ]
        ended = row(forecast_s=None, first_token_s=4.0, finished_s=9.0)
        assert self.names(phases(ended, events)) == [
            ("queue", 0.0, 1.0),
            ("prefill", 1.0, 2.0),
            ("queue", 2.0, 3.0),
            ("prefill", 3.0, 4.0),
            ("decode", 4.0, 5.0),
            ("queue", 5.0, 6.0),
            ("decode", 6.0, 9.0),
        ]

    def test_of_one_that_never_ran(self) -> None:
        ended = row(dispatched_s=None, first_token_s=None, forecast_s=None, finished_s=7.0)
        events = [Event(0.0, "arrived"), Event(7.0, "refused", "the queue is full")]
        assert self.names(phases(ended, events)) == [("queue", 0.0, 7.0)]

    @given(
        st.lists(
            st.tuples(
                st.floats(0, 20),
                st.sampled_from(["dispatched", "lost", "recalled", "evicted", "first token"]),
            )
        ),
        st.one_of(st.none(), st.floats(0, 12)),
        st.floats(0, 15),
    )
    def test_phases_follow_one_another(
        self, happened: list[tuple[float, str]], first_token_s: float | None, finished_s: float
    ) -> None:
        events = [Event(at_s, what) for at_s, what in happened]
        ended = row(forecast_s=None, first_token_s=first_token_s, finished_s=finished_s)
        spans = phases(ended, events)
        for span in spans:
            assert 0 <= span.start_s <= span.end_s <= finished_s
        for before, after in pairwise(spans):
            assert before.end_s == after.start_s


class TestExport:
    def test_a_request_comes_to_the_collector_as_a_tree(self) -> None:
        with collector() as kept:
            traces = Traces(config(kept.endpoint))
            traces.ended(row(evictions=1), EVENTS, submission(trace=PARENT))
            traces.close()
            # Closing waits for the last spans for some seconds only.
            request, *children = kept.wait(5)
        assert kept.services == {"tiebreak"}
        assert request.name == "text_completion a-model"
        assert request.trace_id.hex() == PARENT[3:35]
        assert request.parent_span_id.hex() == PARENT[36:52]
        assert [child.name for child in children] == ["forecast", "queue", "prefill", "decode"]
        assert {child.parent_span_id for child in children} == {request.span_id}
        assert len({span.span_id for span in kept.spans}) == 5
        arrival_ns = 1_790_000_000 * 10**9
        assert request.start_time_unix_nano == arrival_ns
        assert request.end_time_unix_nano == arrival_ns + 3 * 10**9
        assert children[2].start_time_unix_nano == arrival_ns + 5 * 10**8
        assert [event.name for event in request.events] == [event.what for event in EVENTS]
        told = attributes(request)
        assert told["gen_ai.usage.output_tokens"] == 20
        assert told["gen_ai.response.finish_reasons"] == ["stop"]
        assert told["tiebreak.energy.source"] == "model:test"
        assert told["tiebreak.evictions"] == 1

    def test_an_error_is_one(self) -> None:
        with collector() as kept:
            traces = Traces(config(kept.endpoint))
            traces.ended(row(finish_reason="error", first_token_s=None), [], submission())
            traces.close()
            kept.wait(1)
        assert kept.spans[0].status.code == 2
        assert attributes(kept.spans[0])["error.type"] == "error"
        assert "gen_ai.response.time_to_first_chunk" not in attributes(kept.spans[0])

    def test_what_nobody_wants_to_see_is_not_sent(self) -> None:
        with collector() as kept:
            traces = Traces(config(kept.endpoint, traced_share=0))
            traces.ended(row(), EVENTS, submission())
            traces.close()
        assert kept.spans == []

    @pytest.mark.timeout(120)  # exporting each in turn would take 5 s a request
    def test_a_dead_collector_delays_nobody(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
            traces = Traces(config(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"))
            for number in range(2000):
                traces.ended(row(), EVENTS, submission(f"request-{number}"))
            traces.close()


class TestSwitch:
    def test_without_an_endpoint_nothing_is_loaded_and_no_engine_is_told(self) -> None:
        code = (
            "import sys\n"
            "from cluster.config import ClusterConfig\n"
            "from cluster.telemetry.telemetry import Telemetry\n"
            "from tests.cluster.rows import EVENTS, row, submission\n"
            "telemetry = Telemetry(ClusterConfig())\n"
            "telemetry.ended(row(), EVENTS, submission())\n"
            "assert telemetry.trace(submission()) == ''\n"
            "print(*(m for m in sys.modules if 'otlp' in m or 'opentelemetry.sdk.trace' in m))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == []
        assert engine_arguments(ClusterConfig().telemetry) == {}
        assert engine_environment(ClusterConfig().telemetry, "replica-0") == {}

    def test_engines_send_their_spans_to_the_same_collector(self) -> None:
        told = config("http://collector/v1/traces")
        assert engine_arguments(told.telemetry) == {
            "otlp_traces_endpoint": "http://collector/v1/traces"
        }
        environment = engine_environment(told.telemetry, "replica-3")
        assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
        assert "replica-3" in environment["OTEL_RESOURCE_ATTRIBUTES"]

    def test_an_engine_is_told_the_request_s_span(self) -> None:
        telemetry = Telemetry(config("http://collector/v1/traces"))
        context = trace_context(submission(trace=PARENT), 1.0)
        assert telemetry.trace(submission(trace=PARENT)) == context.traceparent
