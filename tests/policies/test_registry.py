from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from policies import (
    ADMISSIONS,
    EVICTIONS,
    ORDERINGS,
    InvalidOptionError,
    PluginError,
    QueueState,
    Registry,
    UnknownNameError,
    policy,
)
from tests.policies.factories import make_batch

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class ShortPrompts:
    name: ClassVar[str] = "short_prompts"
    weight: float = 1.0

    def keys(self, batch, queue):
        return batch.prompt_tokens * self.weight


def oldest(**options):
    return ShortPrompts(weight=-1.0)


class Keyless:
    name = "keyless"


number = 7
"""


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    module: str = "short_prompts",
    **entries: str,
) -> None:
    """Write what pip leaves of a package with entry points, and put it on the path."""
    (folder / f"{module}.py").write_text(PLUGIN)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_an_unknown_name_is_answered_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        ORDERINGS.build("kv_volme")
    message = str(caught.value)
    assert "unknown ordering 'kv_volme'" in message
    assert "did you mean 'kv_volume'?" in message
    assert all(name in message for name in ORDERINGS.names())
    with pytest.raises(UnknownNameError) as caught:
        ADMISSIONS.build("zzz")
    assert "did you mean" not in str(caught.value)


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidOptionError, match=r"'gama'.*did you mean 'gamma'"):
        ORDERINGS.build("tie", {"gama": 0.8})
    with pytest.raises(InvalidOptionError, match=r"eviction 'latest'.*'variant'; known are none"):
        EVICTIONS.build("latest", {"variant": "stored"})


@pytest.mark.parametrize("value", [2.0, "high", None])
def test_a_refused_value_names_the_part_and_the_option(value: object) -> None:
    with pytest.raises(InvalidOptionError, match=r"ordering 'tie' with options \{'gamma':"):
        ORDERINGS.build("tie", {"gamma": value})


def test_a_name_is_registered_once() -> None:
    registry: Registry[object] = Registry("thing", "tiebreak.things", method="keys")

    class Thing:
        name = "thing"

    registry.register(Thing)
    with pytest.raises(ValueError, match="thing 'thing' is registered twice"):
        registry.register(Thing)


def test_a_part_comes_from_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ORDERINGS.group, by_prompt="short_prompts:ShortPrompts")
    assert ORDERINGS.names()[-1] == "by_prompt"
    assert "short_prompts" not in sys.modules, "listing names must not import plug-ins"
    batch, queue = make_batch(prompt_tokens=[7, 3]), QueueState(2, 1)
    np.testing.assert_array_equal(ORDERINGS.build("by_prompt").keys(batch, queue), [7, 3])
    tuned = policy("tie", ordering="by_prompt", ordering_options={"weight": 2.0})
    np.testing.assert_array_equal(tuned.ordering.keys(batch, queue), [14, 6])
    with pytest.raises(InvalidOptionError, match=r"'wait'.*did you mean 'weight'"):
        ORDERINGS.build("by_prompt", {"wait": 1})
    with pytest.raises(UnknownNameError, match="by_prompt"):
        ORDERINGS.build("by_promt")


def test_an_entry_point_may_be_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ORDERINGS.group, oldest="short_prompts:oldest")
    ordering = ORDERINGS.build("oldest", {"anything": 1})
    np.testing.assert_array_equal(
        ordering.keys(make_batch(prompt_tokens=[7, 3]), QueueState(2, 1)), [-7, -3]
    )


def test_our_names_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ORDERINGS.group, fcfs="short_prompts:ShortPrompts")
    assert ORDERINGS.names().count("fcfs") == 1
    assert type(ORDERINGS.build("fcfs")).__module__ == "policies.ordering"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("short_prompts:Missing", "cannot be loaded"),
        ("no_such_module:Thing", "cannot be loaded"),
        ("short_prompts:number", "is a int, must be a class"),
        ("short_prompts:Keyless", "without the method 'keys'"),
    ],
)
def test_a_broken_entry_point_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    install(tmp_path, monkeypatch, EVICTIONS.group, broken=value)
    with pytest.raises(PluginError, match=f"eviction 'broken'.*{message}"):
        EVICTIONS.build("broken")


def test_two_packages_with_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("first", "second"):
        folder = tmp_path / module
        folder.mkdir()
        install(folder, monkeypatch, ORDERINGS.group, module, mine=f"{module}:ShortPrompts")
    with pytest.raises(PluginError, match="first:ShortPrompts and second:ShortPrompts"):
        ORDERINGS.build("mine")
