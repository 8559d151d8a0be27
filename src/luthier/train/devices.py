"""Devices, precision and processes through accelerate."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from luthier.core.errors import MissingExtra, Refused, sentence


def make_accelerator(precision: str = "fp32", tracker: str = "none", folder: str | None = None) -> Any:
    """An accelerate.Accelerator for this process; state of an earlier run in the same process is dropped.

    precision: fp32, bf16 or fp16 (autocast). tracker: where logged figures go besides the run's own files; folder: its files.
    FSDP2 comes from `train.shard`, or from the settings of `accelerate launch`. Raises Refused under DeepSpeed, whose engine takes
    the step out of the loop's hands.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes"):
        raise Refused(sentence("training in several processes", "plain copies (DDP) or shards (FSDP2)", "a launch with DeepSpeed",
                               "Launch without it and set train.shard: true, which spreads weights, gradients and optimiser state "
                               "as ZeRO-3 does"))  # fmt: skip
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    mixed = "no" if precision == "fp32" else precision
    AcceleratorState._reset_state()
    if tracker == "none":
        return Accelerator(mixed_precision=mixed)
    if find_spec(tracker) is None:
        raise MissingExtra(f"train.tracker: {tracker}", tracker, "trackers")
    accelerator = Accelerator(mixed_precision=mixed, log_with=tracker, project_dir=folder)
    accelerator.init_trackers("luthier")
    return accelerator
