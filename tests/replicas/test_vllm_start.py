"""What vLLM refuses before it starts anything."""

from __future__ import annotations

import asyncio
import os

import pytest

pytest.importorskip("vllm", reason="needs vLLM")
from replicas.protocol import EngineStartError
from replicas.stall_reports import SOCKET_VARIABLE
from replicas.vllm_engine import VllmEngine, VllmEngineOptions


def test_an_argument_that_vllm_does_not_have_is_a_start_error_and_leaves_nothing() -> None:
    engine = VllmEngine(VllmEngineOptions("model", {"no_such_argument": 1}))
    with pytest.raises(EngineStartError, match="no_such_argument"):
        asyncio.run(engine.start())
    assert SOCKET_VARIABLE not in os.environ
