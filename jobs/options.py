"""The cluster configuration as command-line options: one option per field, made from the schema."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cluster.config import ClusterConfig, ConfigField, fields, load_config

CONFIG_PANEL = "Cluster configuration"


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--config FILE` and one option per configuration field.

    The command's own parameter `config: ClusterConfig` receives the result. Options stand over the
    file, the file over the defaults.
    """
    signature = inspect.signature(command)
    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "config"
    ]
    options = {_parameter_name(field): field for field in fields()}

    @functools.wraps(command)
    def run(**arguments: Any) -> Any:
        path = arguments.pop("config_file")
        given = {name: arguments.pop(name) for name in options}
        overrides = {
            options[name].name: yaml.safe_load(text)
            for name, text in given.items()
            if text is not None
        }
        return command(config=load_config(path, overrides), **arguments)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*own, _config_file(), *(_option(name, field) for name, field in options.items())]
    )
    # typer reads the annotations from the signature only when the function has none of its own.
    run.__annotations__ = {}
    return run


def given_model(config: ClusterConfig) -> str | None:
    """The model somebody asked for, None when it is the default's."""
    return config.model if "model" in config.model_fields_set else None


def _parameter_name(field: ConfigField) -> str:
    return "config_" + field.name.replace(".", "_")


def _config_file() -> inspect.Parameter:
    annotation = Annotated[
        Path | None,
        typer.Option("--config", help="YAML file with these fields.", rich_help_panel=CONFIG_PANEL),
    ]
    return inspect.Parameter(
        "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _option(name: str, field: ConfigField) -> inspect.Parameter:
    annotation = Annotated[
        str | None,
        typer.Option(
            f"--{field.name}",
            help=f"{field.description} Default: {shown(field.default)}.",
            metavar=kind(field.annotation),
            rich_help_panel=CONFIG_PANEL,
        ),
    ]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def kind(annotation: Any) -> str:
    """A field's type as help texts name it."""
    arguments = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(str(a) for a in arguments)
    if typing.get_origin(annotation) is dict:
        return "YAML"
    if arguments:
        return kind(arguments[0])
    return str(getattr(annotation, "__name__", annotation)).upper()


def shown(value: Any) -> str:
    """A value as YAML writes it, on one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
