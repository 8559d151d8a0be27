"""Where models go when nothing else says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fastest() -> torch.device:
    """The machine's accelerator, or the CPU: also on Apple's chips, whose GPU lacks the float64 that measures count in."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or found.type == "mps" else found
