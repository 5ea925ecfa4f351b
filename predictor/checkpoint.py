"""The state of a training between two epochs, in a folder that survives a kill at any instant."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch

from predictor.atomic_file import replace_file
from predictor.errors import PredictorError

FOLDER = ".training"
"""Of an unfinished training inside the folder of the network that it makes."""

_STATE = "state.pt"
_RUN = "run.json"


class CheckpointError(PredictorError):
    """An unfinished training cannot be taken up; the message says what to do."""


class Checkpoint:
    """What an unfinished training left in the folder of its network.

    Args:
        out: Folder of the network.
        identity: Everything that decides the training's result, as plain values. A folder whose
            unfinished training has another identity is refused once an epoch is done: it may
            hold hours of work.

    Raises:
        CheckpointError: The folder holds another unfinished training.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.folder = out / FOLDER
        mine = msgspec.json.encode(identity)
        file = self.folder / _RUN
        found = file.read_bytes() if file.is_file() else b""
        if found == mine:
            return
        if (self.folder / _STATE).is_file():
            raise CheckpointError(
                f"{self.folder} holds an unfinished training that differs in "
                f"{_differences(found, mine)}; run its command to finish it, delete that folder, "
                "or name another --out"
            )
        replace_file(file, lambda stream: stream.write(mine))

    def load(self) -> dict[str, Any] | None:
        """The state after the last epoch that was saved; None: none was."""
        try:
            state: dict[str, Any] = torch.load(
                self.folder / _STATE, map_location="cpu", weights_only=True
            )
        except FileNotFoundError:
            return None
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.folder / _STATE} cannot be read ({error}); delete it to train from the "
                "first epoch"
            ) from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state, all or nothing."""
        replace_file(self.folder / _STATE, lambda stream: torch.save(state, stream))

    def delete(self) -> None:
        """Remove all of it, once the network is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _differences(found: bytes, mine: bytes) -> str:
    try:
        one, other = msgspec.json.decode(found, type=dict), msgspec.json.decode(mine, type=dict)
    except msgspec.DecodeError:
        return "everything"
    names = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    return ", ".join(f"{name} ({one.get(name)} there, {other.get(name)} here)" for name in names)
