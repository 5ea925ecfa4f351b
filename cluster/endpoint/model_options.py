"""vLLM's server options and its configuration of a model, made without an engine."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.config import ClusterConfig, ConfigError
from cluster.config_sections import GatewayConfig
from replicas.embedded_model import resolve_model

if TYPE_CHECKING:
    from vllm.config import VllmConfig

APPLICATION = "tiebreak"
"""Name of the Serve application."""

RESERVED = frozenset(
    {"api_key", "config", "grpc", "headless", "host", "lora_modules", "middleware", "model", "port"}
)
"""Options that are Tiebreak's to set, or that would go around what it checks."""


def merged(config: ClusterConfig, given: Mapping[str, Any]) -> GatewayConfig:
    """The cluster's section `gateway` with some fields given anew."""
    return GatewayConfig(**{**config.gateway.model_dump(exclude_unset=True), **given})


def without_accelerator() -> None:
    """Make vLLM in this process need none, whatever it was built for and this machine has.

    Call it before vLLM is imported.
    """
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def server_options(config: ClusterConfig, gateway: GatewayConfig) -> argparse.Namespace:
    """The options vLLM's server would have been started with.

    Args:
        config: The cluster's.
        gateway: The gateway's own.

    Raises:
        ConfigError: vLLM knows no such option or refuses its value, or it is not free to choose.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if taken := sorted(RESERVED & {name.replace("-", "_") for name in gateway.vllm_args}):
        raise ConfigError(
            f"gateway.vllm_args sets {', '.join(taken)}, which it may not: leave it out"
        )

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"gateway.vllm_args: {message}")

    ours: dict[str, Any] = {
        "allowed_origins": [],  # no web page of elsewhere may use the endpoint
        "model": resolve_model(config.model),
        "max_model_len": config.replicas.max_model_len,
        "served_model_name": gateway.served_model_name or config.model,
    }
    parser = make_arg_parser(Parser(add_help=False))  # type: ignore[no-untyped-call]
    options = parser.parse_args([*_words(parser, ours), *_words(parser, gateway.vllm_args)])
    try:
        validate_parsed_serve_args(options)
        if options.tool_parser_plugin:
            ToolParserManager.import_tool_parser(options.tool_parser_plugin)
        if options.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(options.reasoning_parser_plugin)
        validate_api_server_args(options)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"gateway.vllm_args: {error.args[0]}") from None
    assert isinstance(options, argparse.Namespace), "a parser makes one"
    return options


def vllm_config_of(options: argparse.Namespace) -> VllmConfig:
    """What vLLM knows of a model without running it, as its own server without an engine does.

    Raises:
        ConfigError: There is no such model, or an option does not go with it.
    """
    from vllm import envs
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    logging.getLogger("vllm").setLevel(logging.WARNING)
    try:
        engine = AsyncEngineArgs.from_cli_args(options)
        model = engine.create_model_config()
        # Kernels belong to the engines; here their device would be checked in vain.
        model.quantization = None
        envs.VLLM_CPU_KVCACHE_SPACE = 0
        return VllmConfig(
            model_config=model,
            structured_outputs_config=engine.create_structured_outputs_config(),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {options.model!r}: {' '.join(str(error).split())}") from error


def _words(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line that the parser understands."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        action = parser._option_string_actions.get(flag)
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list) and action is not None and action.nargs is not None:
            words += [flag, *map(str, value)]
        elif isinstance(value, list | dict):
            words += [flag, json.dumps(value)]
        else:
            words += [flag, str(value)]
    return words
