"""What the plug-in touches of vLLM, held against the vLLM that is installed."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM")
import vllm
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler

from jobs.bare_scheduler import Sizes, bare_scheduler, engine_request
from policies import gate as gate_module
from replicas import engine_forecasts, gated_queue, kv_scheduler, shared_blocks
from replicas.gated_queue import GatedQueue
from replicas.kv_scheduler import TOUCHED, ProjectedMemoryScheduler

MODULES = (kv_scheduler, gated_queue, shared_blocks, engine_forecasts)
"""Those that see vLLM's objects."""

OURS = (
    *MODULES,
    gate_module,
    *(
        importlib.import_module(name)
        for name in (
            "policies.forecast",
            "policies.model_lengths",
            "policies.request",
            "replicas.request_terms",
            "replicas.stall_reports",
        )
    ),
)

CALLS = {
    "vllm.v1.core.sched.scheduler.Scheduler": {
        "_preempt_request": "self, request, timestamp, drop_stale_output",
        "schedule": "self, throttle_prefills",
    },
    "vllm.v1.core.kv_cache_manager.KVCacheManager": {
        "get_blocks": "self, request_id",
        "get_computed_blocks": "self, request",
    },
    "vllm.v1.core.block_pool.BlockPool": {"get_num_free_blocks": "self"},
    "vllm.v1.request.Request": {"is_finished": "self"},
}
"""Parameters of what is called or replaced."""


def instances() -> dict[str, Any]:
    """One object of each class of `TOUCHED`, as vLLM makes them."""
    sizes = Sizes()
    scheduler = bare_scheduler(Scheduler, sizes)
    manager = scheduler.kv_cache_manager
    objects = [
        scheduler,
        manager,
        manager.empty_kv_cache_blocks,
        manager.block_pool,
        manager.block_pool.blocks[0],
        scheduler.schedule(),
        engine_request("r", [1, 2], 3, sizes),
    ]
    return {f"{type(o).__module__}.{type(o).__qualname__}": o for o in objects}


def attributes(module: ModuleType) -> Iterator[tuple[str, int]]:
    """Attributes that a module names, with their lines."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno


def own_names(module: ModuleType) -> set[str]:
    """Names of methods, fields and attributes that a module defines."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {t.attr for t in targets if isinstance(t, ast.Attribute)}
    return names


@pytest.mark.parametrize("path", TOUCHED)
def test_everything_listed_exists(path: str) -> None:
    thing = instances().get(path)
    assert thing is not None, (
        f"vLLM {vllm.__version__} has no {path}, which replicas.kv_scheduler relies on: find what "
        "took its place, then correct the plug-in and its TOUCHED"
    )
    missing = [name for name in TOUCHED[path] if not hasattr(thing, name)]
    assert not missing, (
        f"{path} of vLLM {vllm.__version__} has no {', '.join(missing)} any more, which "
        "replicas.kv_scheduler relies on: find what took the place, then correct the plug-in and "
        "its TOUCHED"
    )


@pytest.mark.parametrize("path", CALLS)
def test_what_is_called_takes_the_same_arguments(path: str) -> None:
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    for method, expected in CALLS[path].items():
        assert method in TOUCHED[path], f"{path}.{method} is not in TOUCHED"
        found = ", ".join(inspect.signature(getattr(cls, method)).parameters)
        assert found == expected, (
            f"{path}.{method} of vLLM {vllm.__version__} takes ({found}); replicas.kv_scheduler "
            f"was written for ({expected}): read what changed"
        )


def test_the_queue_answers_all_that_vllm_asks_of_one() -> None:
    written_for = {
        "__bool__",
        "__iter__",
        "__len__",
        "add_request",
        "peek_request",
        "pop_request",
        "prepend_request",
        "prepend_requests",
        "remove_request",
        "remove_requests",
    }
    asked = RequestQueue.__abstractmethods__
    assert asked == written_for, (
        f"RequestQueue of vLLM {vllm.__version__} differs by {sorted(asked ^ written_for)} from "
        "the one that replicas.gated_queue was written for: read what its scheduler asks of it"
    )
    for name in asked:
        ours, theirs = (inspect.signature(getattr(c, name)) for c in (GatedQueue, RequestQueue))
        assert list(ours.parameters) == list(theirs.parameters), (
            f"RequestQueue.{name} of vLLM {vllm.__version__} takes {theirs}, GatedQueue's {ours}"
        )


def test_what_vllm_asks_of_its_waiting_queue_is_what_a_queue_answers() -> None:
    """Whatever is called on `self.waiting`, or on the queue that the step takes from."""
    queues = {"waiting", "kv_holding_waiting", "request_queue", "from_queue"}
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(Scheduler) or vllm))):
        if isinstance(node, ast.Attribute):
            of = node.value
            name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
            if name in queues:
                used.add(node.attr)
    assert used <= set(RequestQueue.__abstractmethods__), (
        f"the scheduler of vLLM {vllm.__version__} uses {sorted(used)} of its waiting queue"
    )


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_else_of_vllm_is_touched(module: ModuleType) -> None:
    listed = {name for names in TOUCHED.values() for name in names}
    ours = set().union(*map(own_names, OURS)) | set().union(
        *(dir(kind) for kind in (dict, list, set, str))
    )
    things = instances()
    unlisted = {
        f"{Path(inspect.getfile(module)).name}:{line} uses {name}, which {path} has"
        for name, line in attributes(module)
        if name not in listed | ours
        for path, thing in things.items()
        if hasattr(thing, name)
    }
    assert not unlisted, f"not in replicas.kv_scheduler.TOUCHED: {sorted(unlisted)}"
    private = {
        f"{Path(inspect.getfile(module)).name}:{line} uses {name}"
        for name, line in attributes(module)
        if name.startswith("_") and not name.startswith("__")
        if name not in listed | own_names(module)
    }
    assert not private, f"private and in nobody's list: {sorted(private)}"


def test_nothing_is_listed_that_is_not_used() -> None:
    used = {name for module in MODULES for name, _ in attributes(module)}
    for path, names in TOUCHED.items():
        assert set(names) <= used, f"{path}: {sorted(set(names) - used)} are used nowhere"


def test_the_schedulers_own_names_hide_none_of_vllms() -> None:
    """But those that it means to replace."""
    theirs = instances()["vllm.v1.core.sched.scheduler.Scheduler"]
    ours = own_names(kv_scheduler) - {"schedule", "waiting", "__init__"}
    hidden = sorted(name for name in ours if hasattr(theirs, name))
    assert not hidden, (
        f"vLLM {vllm.__version__} has {', '.join(hidden)} of its own now; rename those of "
        f"{ProjectedMemoryScheduler.__name__}"
    )
