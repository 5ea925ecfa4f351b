"""Reading a journal back, also one whose controller was killed in the middle of a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from cluster.journal_events import FORMAT, Adopted, Event, Header, Joined, Ref, Submitted


class JournalError(ValueError):
    """The file is not a journal that can be read; the message has the line and the reason."""


class JournalReader:
    """Reads a journal line by line, and knows the names behind its numbers.

    A line that was cut off when the controller died ends its session; it is skipped.

    Attributes:
        line: Number of the line read last, from 1.
        torn: Lines that were cut off.

    Raises:
        JournalError: While iterating: the file cannot be read, is no journal, is of another
            version, or a line in the middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.line = 0
        self.torn = 0
        self._path = path
        self._requests: dict[int, str] = {}
        self._replicas: dict[int, str] = {}

    def __iter__(self) -> Iterator[Header | Event]:
        damage = ""
        try:
            with self._path.open("rb") as file:
                for self.line, line in enumerate(file, 1):
                    try:
                        entry = self._decode(line)
                    except msgspec.MsgspecError as error:
                        if damage or self.line == 1:
                            raise self._damaged(error) from None
                        damage = str(self._damaged(error))
                        self.torn += 1
                        continue
                    if damage and not isinstance(entry, Header):
                        raise JournalError(damage)
                    damage = ""
                    yield entry
        except OSError as error:
            raise JournalError(f"{self._path} cannot be read: {error.strerror}") from None
        if not self.line:
            raise JournalError(f"{self._path} is empty: no session was recorded")

    def request_id(self, request: Ref) -> str:
        """The id of a request of the session that is being read."""
        return request if isinstance(request, str) else self._requests[request]

    def forget(self, request: Ref) -> None:
        """A request ended in the core, as it did when it was recorded: no line has its number."""
        if isinstance(request, int):
            self._requests.pop(request, None)

    def replica_id(self, replica: Ref) -> str:
        """The id of a replica of the session that is being read."""
        return replica if isinstance(replica, str) else self._replicas[replica]

    def _decode(self, line: bytes) -> Header | Event:
        if self.line == 1 or line.startswith(b"{"):
            version = _VERSION.decode(line).tiebreak_journal
            if version != FORMAT:
                raise JournalError(
                    f"{self._path}, line {self.line}: journal format {version}, but this Tiebreak "
                    f"reads {FORMAT}: replay it with the version that recorded it"
                )
            self._requests, self._replicas = {}, {}
            return _HEADER.decode(line)
        event = _EVENTS.decode(line)
        match event:
            case Submitted() | Adopted():
                self._requests[event.number] = event.request_id
            case Joined():
                self._replicas[event.number] = event.replica_id
        return event

    def _damaged(self, error: Exception) -> JournalError:
        what = "no header of a journal" if self.line == 1 else "damaged"
        return JournalError(f"{self._path}, line {self.line} is {what}: {error}")


class _Version(msgspec.Struct):
    tiebreak_journal: int


_VERSION = msgspec.json.Decoder(_Version)
_HEADER = msgspec.json.Decoder(Header)
_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
