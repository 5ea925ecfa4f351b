"""Options of vLLM's server, checked without a server."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import ConfigError, parse_config
from cluster.endpoint.model_options import merged, server_options, vllm_config_of
from tests.cluster.endpoint import MODEL


def options(**gateway: Any) -> Any:
    config = parse_config({"replicas": {"max_model_len": 1024}, "gateway": gateway})
    return server_options(config, config.gateway)


def test_a_models_configuration_needs_no_engine() -> None:
    config = vllm_config_of(options())
    assert config.model_config.max_model_len == 1024
    assert config.model_config.served_model_name == MODEL
    assert config.device_config.device_type == "cpu"


def test_options_become_those_of_vllms_server() -> None:
    made = options(
        served_model_name="mine",
        vllm_args={
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            "default_chat_template_kwargs": {"a": 1},
            "allowed_origins": ["https://a"],
            "enable_prefix_caching": False,
            "response_role": "bot",
        },
    )
    assert made.served_model_name == ["mine"]
    assert made.enable_auto_tool_choice
    assert made.default_chat_template_kwargs == {"a": 1}
    assert made.allowed_origins == ["https://a"]
    assert made.enable_prefix_caching is False
    assert options().allowed_origins == []
    assert not made.enable_log_requests


@pytest.mark.parametrize(
    ("vllm_args", "words"),
    [
        ({"no_such_thing": 1}, "unrecognized arguments: --no-such-thing"),
        ({"max_logprobs": "many"}, "max-logprobs"),
        ({"enable_auto_tool_choice": True}, "requires --tool-call-parser"),
        (
            {"enable_auto_tool_choice": True, "tool_call_parser": "nonsense"},
            "invalid tool call parser: nonsense",
        ),
        ({"api-key": ["x"], "middleware": ["y"]}, "sets api_key, middleware, which it may not"),
    ],
)
def test_what_vllm_does_not_know_is_refused(vllm_args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.vllm_args") as error:
        options(vllm_args=vllm_args)
    assert words in str(error.value)


def test_what_is_given_stands_over_the_clusters_own() -> None:
    cluster = parse_config({"gateway": {"port": 1, "replicas": 3}})
    assert merged(cluster, {"port": 2}).model_dump(include={"port", "replicas", "host"}) == {
        "host": "127.0.0.1",
        "port": 2,
        "replicas": 3,
    }
