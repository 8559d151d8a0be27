"""The loss scale of fp16: steps whose gradients overflow are left out, and the scale is part of a checkpoint.

Small gradients are zero in fp16, so the loss is multiplied before the backward pass and gradients are divided after it (arXiv
1710.03740, section 3.2). The scale begins high; a step that overflows changes nothing but halves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.core.errors import Refused, sentence

KEY = "train.scale"


@dataclass(frozen=True)
class LossScale:
    """scaler: torch's GradScaler as accelerate made it, None in other precisions."""

    scaler: Any

    def check(self, parameters: Iterable[nn.Parameter]) -> None:
        """Raise Refused where weights that train are fp16 themselves: their gradients cannot be divided without loss."""
        if self.scaler is not None and any(p.dtype == torch.float16 for p in parameters):
            raise Refused(sentence("train.precision: fp16", "trained weights in fp32", "weights in fp16", "Set dtype: fp32"))

    def overflowed(self, norm: float) -> bool:
        """Whether the optimiser is going to leave this step out; not where the scale has become so small that it is no cause."""
        return self.scaler is not None and not math.isfinite(norm) and self.scaler.get_scale() >= 1.0

    def told(self, step: int) -> str:
        """What happened, for the user."""
        return f"step {step + 1} overflowed in fp16 and was left out; the loss scale is now {self.scaler.get_scale():.0f}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, {} without a scale."""
        return {} if self.scaler is None else {KEY: dict(self.scaler.state_dict())}

    def load(self, states: Mapping[str, Any]) -> None:
        """Go on with the scale of a checkpoint."""
        if self.scaler is not None and KEY in states:
            self.scaler.load_state_dict(dict(states[KEY]))
