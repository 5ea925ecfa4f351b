"""Running a typer application: a user's error becomes one line and an exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from cluster.client import NoClusterError
from cluster.config import ConfigError
from cluster.endpoint.listener import PortInUseError
from cluster.lifecycle import RayUnreachableError, StartError
from cluster.workload import WorkloadError
from jobs.errors import InputError, OutputError
from predictor.errors import PredictorError
from replicas.embedded_model import ModelNotFoundError
from replicas.step_time import StepTimeError

USER_ERRORS = (
    ConfigError,
    InputError,
    ModelNotFoundError,
    NoClusterError,
    OutputError,
    PortInUseError,
    PredictorError,
    RayUnreachableError,
    StartError,
    StepTimeError,
    WorkloadError,
)
"""Errors that say in one line what to do; everything else is a defect and keeps its traceback."""


def run(app: typer.Typer, words: Sequence[str] | None = None) -> NoReturn:
    """Run the application and end the process; a user's error has exit status 2.

    Args:
        app: What to run.
        words: The arguments; None takes the process's own.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(sys.argv[1:] if words is None else list(words))
    except USER_ERRORS as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    sys.exit(0)
