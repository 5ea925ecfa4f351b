"""Why a single row cannot be used."""

from __future__ import annotations


class RowError(ValueError):
    """The row cannot be used; the message says what, the value seen and the limit."""
