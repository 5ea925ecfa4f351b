"""Functions that are compiled to machine code, for loops over a handful of numbers.

A decision works on a few dozen numbers at a time. There one numpy operation costs about a
microsecond, nearly all of it for being called, and a decision needs hundreds; a compiled scalar
loop does all of them for the price of one. Above some thousand numbers the two are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile `function` when it is first called, and keep the machine code on disk.

    It must mean the same as plain Python, which is what runs under `NUMBA_DISABLE_JIT=1`: scalars
    and arrays only, no division by zero, nothing that overflows. Its machine code is kept beside
    its source file, else in the user's cache folder, else nowhere, and is made again when that one
    file changes. So it calls compiled functions of its own file only, and what is computed
    elsewhere comes in as an argument.

    numba is not imported before the first call: it costs half a second, and a process in which it
    is loaded cannot start vLLM's CPU worker (vLLM 0.32 trips over llvmlite's module attributes).
    """
    return cast(Function, Uncompiled(function))


class Uncompiled:
    """Stands for a function until somebody calls one of its file; then all are exchanged.

    They refer to each other by their global names, so that all have to be numba's own before the
    first is compiled; and from then on a call by its name goes straight to the machine code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        if self._compiled is None:
            self._exchange()
            assert self._compiled is not None
        return self._compiled(*args)

    def _exchange(self) -> None:
        self._make()
        names = self._function.__globals__
        for name, value in list(names.items()):
            if isinstance(value, Uncompiled):
                names[name] = value._make()

    def _make(self) -> Callable[..., Any]:
        if self._compiled is None:
            import numba

            try:
                self._compiled = numba.njit(cache=True)(self._function)
            except RuntimeError:  # neither folder can be written to
                self._compiled = numba.njit(self._function)
        return self._compiled
