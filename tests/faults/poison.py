"""A request of which simulated engines die, for worker processes of a test's own Ray."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

MARK = 31_999
"""First token of a prompt that is poison."""

DEATHS = "TIEBREAK_TEST_DEATHS"
"""Environment variable with the file that gets a line for each engine that died."""

ENGINE = "replicas.simulated_engine"


def install() -> None:
    """Make the simulated engines of this process, if it will have any, die of poison."""
    sys.meta_path.insert(0, _WhenImported())


class _WhenImported(MetaPathFinder):
    """Does its work when the engine is imported: most processes never do, and it takes long."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            _make_mortal(module.SimulatedEngine)

        loader.exec_module = execute_and_change
        return spec


def _make_mortal(engine_class: Any) -> None:
    """Have engines die in the step that computes a poisoned prompt."""
    publish = engine_class._publish

    def deadly(engine: Any, fresh: list[Any], *rest: Any) -> None:
        if any(_first_token(attempt.generation.prompt) == MARK for attempt in fresh):
            with Path(os.environ[DEATHS]).open("a", encoding="utf-8") as file:
                file.write(f"{os.getpid()}\n")
            engine.die("it was given poison")
            return
        publish(engine, fresh, *rest)

    engine_class._publish = deadly


def _first_token(prompt: bytes) -> int:
    return int.from_bytes(prompt[:4], "little")
