"""Is a bottleneck beside the feed-forward layers better than one behind them, and does its scale matter?"""

from __future__ import annotations

import functools

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims import _adapters

CLAIM = Claim(
    component="parallel_adapter",
    papers=(141, 223),
    source="arXiv 2110.04366",
    says="At the feed-forward a parallel adapter beats a sequential one of the same size, and one scaled by 4 beats both LoRA "
    "and the unscaled.",
    world="residual network of two feed-forward blocks, width 16; all feed-forward weights of the task moved; 512 rows; "
    "384 parameters in every arm",
    expect="scaled_parallel < series",
    also=("parallel < series", "scaled_parallel < lora", "scaled_parallel < parallel"),
    measure="error",
    seeds=tuple(range(10)),
    run=functools.partial(_adapters.run, arms=("series", "parallel", "scaled_parallel", "lora")),
    budget_s=150,
    note="The task is that of a network tuned as a whole, so that no arm can express it exactly. Learning rate chosen for each "
    "arm from the same three; with Adam a scale acts much like a larger rate for W_up.",
)
