"""What a training run may be told; one flat, closed set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, kw_only=True)
class Training:
    """The `train:` section of a recipe.

    steps: optimiser steps, or epochs: passes over the data (exactly one of the two).
    batch: rows per optimiser step over all processes. micro: rows per forward pass (None: the whole batch).
    lr: peak learning rate; warmup: share of steps (below 1) or number of steps. clip: gradient norm, 0 is off.
    precision: fp32, or autocast in bf16 or, on a GPU, in fp16 with a scaled loss. packing: lay several sequences into rows of this many
    tokens; "auto" does so where it saves a sixth of the tokens and the model keeps them apart; 0 pads. The numbers are the same.
    checkpointing: recompute activations in the backward pass. shard: spread weights, gradients and optimiser state over all
    processes (FSDP2) instead of a copy on each. save_every: steps between checkpoints (0: only at the end and
    on interruption); keep: how many checkpoints stay. log_every: steps between log lines.
    """

    steps: Annotated[int, Ge(0)] | None = None
    epochs: Annotated[float, Gt(0)] | None = None
    batch: Annotated[int, Gt(0)] = 16
    micro: Annotated[int, Gt(0)] | None = None
    lr: Annotated[float, Ge(0)] = 1e-4
    warmup: Annotated[float, Ge(0)] = 0.0
    clip: Annotated[float, Ge(0)] = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    packing: Annotated[int, Ge(0)] | Literal["auto"] = "auto"
    checkpointing: bool = False
    save_every: Annotated[int, Ge(0)] = 0
    keep: Annotated[int, Gt(0)] = 2
    log_every: Annotated[int, Gt(0)] = 1
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    threads: Annotated[int, Ge(0), Le(1024)] = 0
    shard: bool = False

    def faults(self) -> list[str]:
        """Combinations that cannot be: exactly one of steps and epochs."""
        if (self.steps is None) == (self.epochs is None):
            came = "neither" if self.steps is None else "both"
            return [f"train: requires exactly one of 'steps' and 'epochs'; got {came}"]
        return []

    def total_steps(self, rows: int) -> int:
        """Optimiser steps for a data set of this many rows (a last partial batch is filled from the next pass)."""
        if self.steps is not None:
            return self.steps
        return max(1, -(-round((self.epochs or 1) * rows) // self.batch))

    def warmup_steps(self, steps: int) -> int:
        """Warm-up length in steps."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
