"""Options that several programs have."""

from __future__ import annotations

import torch

from flows.errors import InputError


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one; any of torch's names is accepted.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
