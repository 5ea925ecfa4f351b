"""What can be wrong with a job's input or its output folder."""

from __future__ import annotations

import errno

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""System errors that say a write found no room."""


class InputError(ValueError):
    """The input cannot be read as a whole; the message is one line with the fix."""


class OutputError(RuntimeError):
    """The output folder cannot be used; the message is one line with the fix."""


class OutputFullError(OutputError):
    """A write found no room. Nothing that was written is lost and the rows are still held.

    The same call may be repeated once there is room.
    """


def one_line(error: BaseException) -> str:
    """The text of `error` on one line, for use inside another message."""
    return " ".join(str(error).split()) or type(error).__name__
