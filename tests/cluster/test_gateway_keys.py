"""Who is let in, as whom, and what the endpoint never tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import ConfigError
from cluster.endpoint.api_keys import ApiKeys, read_api_keys
from cluster.endpoint.caller import BadCallerError, Caller, ForeignTenantError, caller_of_headers
from policies.request import RequestClass
from tests.cluster.endpoint import CHAT, Endpoint, endpoint, keys_file

ALICE, BOB = "alice-key-0123456789", "bob-key-01234567890"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    keys = keys_file(tmp_path_factory.mktemp("keys"), alice=ALICE, bob=BOB)
    with endpoint(gateway={"api_keys": keys, "replicas": 2}) as running:
        yield running


def test_only_keys_of_the_file_are_let_in(served: Endpoint) -> None:
    bodies = {"json": {**CHAT, "max_tokens": 2}}
    with served.client() as http:
        for headers in ({}, {"authorization": f"Bearer {ALICE}x"}, {"authorization": ALICE}):
            refused = http.post("/v1/chat/completions", headers=headers, **bodies)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "API key" in refused.json()["error"]["message"]
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == 200
        for headers in ({"authorization": f"Bearer {ALICE}"}, {"x-api-key": BOB}):
            answer = http.post("/v1/chat/completions", headers=headers, **bodies)
            assert answer.status_code == 200
    served.quiet()


def test_a_key_speaks_for_its_own_tenant_only(served: Endpoint) -> None:
    with served.client(headers={"authorization": f"Bearer {ALICE}"}) as http:
        body = {**CHAT, "max_tokens": 2}
        for headers, said in (({"x-tenant": "bob"}, {}), ({}, {"tenant": "bob"})):
            foreign = http.post("/v1/chat/completions", json={**body, **said}, headers=headers)
            assert foreign.status_code == 403
            assert "'alice'" in foreign.json()["error"]["message"]
        own = http.post("/v1/chat/completions", json=body, headers={"x-tenant": "alice"})
        assert own.status_code == 200
    served.quiet()


def test_two_processes_answer_at_one_address(served: Endpoint) -> None:
    """Every connection may meet another of them; each counts its own requests."""
    counted = set()
    for _ in range(40):
        with served.client(headers={"authorization": f"Bearer {ALICE}"}) as http:
            assert http.get("/v1/models").status_code == 200
            lines = http.get("/metrics").text.splitlines()
        (count,) = (
            line.rpartition(" ")[2]
            for line in lines
            if line.startswith("http_requests_total") and '"/v1/models"' in line
        )
        counted.add(count)
    assert len(counted) < 40, "one process has answered all of them"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no keys"),
        ("# nothing\n", "has no keys"),
        ("alice\n", "line 1 of"),
        ("alice: short\n", "5 characters, must have at least 16"),
        (f"alice: {ALICE}\nbob: {ALICE}\n", "line 2 of .* belongs to 'alice' already"),
        ("alice: ключ-ключ-ключ-ключ\n", "ASCII"),
    ],
)
def test_a_bad_file_of_keys_is_named_without_showing_a_key(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as error:
        read_api_keys(str(path))
    assert ALICE not in str(error.value)


def test_a_missing_file_of_keys() -> None:
    with pytest.raises(ConfigError, match="cannot read /no/such/file"):
        read_api_keys("/no/such/file")
    assert read_api_keys(None) is None


def test_whose_key_it_is() -> None:
    keys = ApiKeys({ALICE: "alice", BOB: "bob"})
    assert keys.tenant(f"Bearer {ALICE}") == "alice"
    assert keys.tenant(f"bearer  {BOB}") == "bob"
    assert keys.tenant(None, BOB) == "bob"
    assert keys.tenant("Basic abc", BOB) == "bob"
    for wrong in (None, "", "Bearer", "Bearer ", f"Bearer {ALICE} {BOB}", f"Token {ALICE}"):
        assert keys.tenant(wrong) is None


def test_what_headers_say() -> None:
    said = {"x-tenant": "t", "x-request-class": "Offline", "x-request-timeout": "2.5"}
    caller = caller_of_headers(said, tenant=None, longest_s=60.0)
    assert caller == Caller("t", RequestClass.OFFLINE, 2.5)
    assert caller_of_headers(said, tenant=None, longest_s=1.0).timeout_s == 1.0
    assert caller_of_headers({}, tenant=None, longest_s=None) == Caller()
    with pytest.raises(ForeignTenantError, match="belongs to 'other'"):
        caller_of_headers(said, tenant="other", longest_s=None)
    with pytest.raises(BadCallerError, match="x-request-timeout is 'nan'"):
        caller_of_headers({"x-request-timeout": "nan"}, tenant=None, longest_s=None)
