"""Where torch computes."""

from __future__ import annotations

import torch

from predictor.errors import PredictorError


class DeviceError(PredictorError):
    """Torch cannot compute there; one line with the fix."""


def open_device(name: str | torch.device) -> torch.device:
    """The device of this name.

    Args:
        name: As torch names it: `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        DeviceError: There is no such device here, or this torch was built without it.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"device is {str(name)!r}, which torch cannot use here ({reason}); give cpu, or cuda "
            "where torch sees a GPU"
        ) from error
