"""Rows of work: what one row of the input asks for, or why it cannot be used."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

import msgspec

from jobs.openai_batch import BatchLine, batch_request
from jobs.reading.records import Record
from jobs.reading.row_errors import RowError
from jobs.reading.sampling import SAMPLING_NAMES, SamplingError, checked_sampling
from predictor.excerpt import chat_text, excerpt


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row to generate for; exactly one of `prompt` and `messages` is set.

    Attributes:
        row_index: Ordinal in the whole input, from 0. It identifies the row inside the job.
        row_id: The user's id, or `row-00000012` made from the ordinal.
        prompt: Text to continue, not empty.
        messages: A chat: objects with a `role` and a text `content`.
        sampling: Checked keyword arguments of `vllm.SamplingParams` that the row sets itself.
        batch_line: The line of an OpenAI batch file it came from.
    """

    row_index: int
    row_id: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    sampling: dict[str, Any] = {}
    batch_line: BatchLine | None = None

    @property
    def prompt_text(self) -> str:
        """The prompt, or the messages as JSON."""
        if self.prompt is not None:
            return self.prompt
        return msgspec.json.encode(self.messages).decode()

    @property
    def excerpt(self) -> str:
        """What the predictor may read of it."""
        return excerpt(self.prompt if self.prompt is not None else chat_text(self.messages or []))

    def failed(self, error: str) -> BadRow:
        """The row's entry in the errors after its generation failed for good."""
        return BadRow(
            row_index=self.row_index,
            row_id=self.row_id,
            error=error,
            echo=self.prompt_text,
            error_kind="generation",
            endpoint=self.batch_line.endpoint if self.batch_line else None,
        )


class BadRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row that has no result.

    Attributes:
        row_index: Ordinal in the whole input, from 0.
        row_id: The user's id where it could be read, else made from the ordinal.
        error: One line: where, what, the value seen, the limit.
        echo: The row as it was read, or its prompt.
        error_kind: `input` when the row cannot be used, `generation` when its generation failed.
        endpoint: Of an OpenAI batch line, where it could be read.
    """

    row_index: int
    row_id: str
    error: str
    echo: str = ""
    error_kind: str = "input"
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Turns records into rows by the columns that the input turned out to have.

    Attributes:
        id_column: Column of row ids; None numbers the rows.
        prompt_column: Column of prompts.
        messages_column: Column of chats.
        sampling_columns: Columns that are read as sampling parameters.
        is_batch: Records are OpenAI batch lines.
        from_text: Values are cells of a text table.
    """

    id_column: str | None
    prompt_column: str
    messages_column: str
    sampling_columns: frozenset[str] = SAMPLING_NAMES
    is_batch: bool = False
    from_text: bool = False

    def row(self, record: Record) -> JobRow | BadRow:
        """The row in `record`; a `BadRow` names its place and reason."""
        row_id, endpoint = ordinal_id(record.row_index), None
        try:
            if record.error is not None:
                raise RowError(record.error)
            row_id = self.row_id(record)
            if self.is_batch:
                url = record.fields.get("url")
                endpoint = url if isinstance(url, str) else None
                return self._batch_row(record, row_id)
            return self._table_row(record, row_id)
        except (RowError, SamplingError) as error:
            return BadRow(
                row_index=record.row_index,
                row_id=row_id,
                error=f"{record.place}: {error}",
                echo=record.echo,
                endpoint=endpoint,
            )

    def row_id(self, record: Record) -> str:
        """The id of a record that could be read.

        Raises:
            RowError: The id column holds none.
        """
        if self.id_column is None:
            return ordinal_id(record.row_index)
        value = record.fields.get(self.id_column)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise RowError(
                f"{self.id_column} is {reprlib.repr(value)}, must be a non-empty string "
                "or an integer"
            )
        return str(value)

    def _table_row(self, record: Record, row_id: str) -> JobRow:
        prompt = record.fields.get(self.prompt_column)
        messages = record.fields.get(self.messages_column)
        if isinstance(messages, str):
            messages = _parsed_messages(messages)
        if self.from_text and prompt == "" and messages is not None:
            prompt = None
        if prompt is None and messages is None:
            raise RowError(f"has neither {self.prompt_column} nor {self.messages_column}")
        if prompt is not None and messages is not None:
            raise RowError(f"has both {self.prompt_column} and {self.messages_column}, keep one")
        fields = record.fields
        return JobRow(
            row_index=record.row_index,
            row_id=row_id,
            prompt=None if prompt is None else checked_prompt(prompt, self.prompt_column),
            messages=None if messages is None else checked_messages(messages, self.messages_column),
            sampling=checked_sampling(
                {name: fields[name] for name in self.sampling_columns & fields.keys()},
                from_text=self.from_text,
            ),
        )

    def _batch_row(self, record: Record, row_id: str) -> JobRow:
        request = batch_request(record.fields)
        return JobRow(
            row_index=record.row_index,
            row_id=row_id,
            prompt=None if request.prompt is None else checked_prompt(request.prompt, "prompt"),
            messages=None
            if request.messages is None
            else checked_messages(request.messages, "messages"),
            sampling=checked_sampling(request.sampling),
            batch_line=request.line,
        )


def ordinal_id(row_index: int) -> str:
    """The id of a row that has none of its own."""
    return f"row-{row_index:08d}"


def checked_prompt(value: Any, name: str) -> str:
    """`value` if it is a prompt.

    Raises:
        RowError: It is not text, or empty.
    """
    if not isinstance(value, str):
        raise RowError(f"{name} is a {type(value).__name__}, must be text")
    if not value:
        raise RowError(f"{name} is empty, must have at least one character")
    return value


def checked_messages(value: Any, name: str) -> list[dict[str, Any]]:
    """`value` if it is a chat of text; null members are left out, as tables have them.

    Raises:
        RowError: Its shape is wrong.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} is {reprlib.repr(value)}, must be a non-empty list of messages")
    return [_checked_message(message, f"{name}[{i}]") for i, message in enumerate(value)]


def _checked_message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RowError(f"{name} is {reprlib.repr(message)}, must be an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise RowError(f"{name}.role is {reprlib.repr(role)}, must be a non-empty string")
    if isinstance(content, list) and content:
        for i, part in enumerate(content):
            _check_part(part, f"{name}.content[{i}]")
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise RowError(
            f"{name}.content is {reprlib.repr(content)}, must be a string or a list of text parts"
        )
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _check_part(part: Any, name: str) -> None:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise RowError(f"{name} is {reprlib.repr(kind)}, must be a part of type 'text'")
    if not isinstance(part.get("text"), str):
        raise RowError(f"{name}.text is {reprlib.repr(part.get('text'))}, must be a string")


def _parsed_messages(cell: str) -> Any:
    if not cell.strip():
        return None
    try:
        return msgspec.json.decode(cell)
    except (ValueError, RecursionError):
        return cell
