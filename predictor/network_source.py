"""Where the network that a configuration asks for comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from predictor.learned import LearnedForecaster

AUTO = "auto"
"""The network that is shipped for the model, if there is one."""

NONE = "none"
"""No network: the prior alone."""

SHIPPED = Path(__file__).parent / "data"
"""Holds one folder for each model that a network is shipped for, of the model's name."""


class NetworkSource(msgspec.Struct, frozen=True):
    """Names a network; what it names is looked up in the process that loads it.

    Attributes:
        network: `AUTO`, `NONE` or a folder, which need not exist.
        model: Who answers.
        device: Where the network runs, as torch names it.
        threads: CPU threads of one pass.
    """

    network: str = AUTO
    model: str = ""
    device: str = "cpu"
    threads: int = 1

    @property
    def folder(self) -> Path | None:
        """The network's folder; None where the prior serves alone."""
        if self.network == NONE:
            return None
        if self.network != AUTO:
            return Path(self.network).expanduser()
        shipped = {folder.name: folder for folder in SHIPPED.glob("*/") if folder.is_dir()}
        return shipped.get(self.model)

    @property
    def name(self) -> str:
        """What reports call it; empty where there is none."""
        return self.folder.name if self.folder is not None else ""

    def load(self) -> LearnedForecaster:
        """The network, ready to be asked.

        Raises:
            ValueError: It is missing or cannot be used; the message says why.
        """
        # Imported where it is needed: a predictor without a network does without torch.
        from predictor.learned import LearnedForecaster

        if self.folder is None:
            raise ValueError(f"no network is shipped for model {self.model!r}: name a folder")
        return LearnedForecaster.load(self.folder, self.device, self.threads)
