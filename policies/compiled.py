"""Functions that are compiled to machine code, for loops over a handful of numbers.

A decision works on a few dozen numbers at a time. There one numpy operation costs about a
microsecond, nearly all of it for being called, and a decision needs hundreds; a compiled scalar
loop does all of them for the price of one. Above some thousand numbers the two are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile `function` when it is first called, and keep the machine code on disk.

    It must mean the same as plain Python, which is what runs under `NUMBA_DISABLE_JIT=1`: scalars
    and arrays only, no division by zero, nothing that overflows. Its machine code is kept beside
    its source file, else in the user's cache folder, else nowhere, and is made again when that one
    file changes. So it calls compiled functions of its own file only, and what is computed
    elsewhere comes in as an argument.
    """
    try:
        made = numba.njit(cache=True)(function)
    except RuntimeError:  # neither folder can be written to
        made = numba.njit(function)
    return cast(Function, made)
