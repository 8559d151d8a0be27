"""Does a bottleneck behind the feed-forward layers move a frozen network to a new task, and how does it rank?"""

from __future__ import annotations

import functools

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims import _adapters

CLAIM = Claim(
    component="series_adapter",
    papers=(223,),
    source="arXiv 2304.01933",
    says="Series adapters, parallel adapters and LoRA each move a frozen model to new tasks; tuning little else does not.",
    world="residual network of two feed-forward blocks, width 16; all feed-forward weights of the task moved; 512 rows; "
    "384 parameters in every arm but the head's 68",
    expect="series < head",
    also=("series < frozen", "parallel < head", "lora < head", "series < lora", "parallel < series"),
    measure="error",
    seeds=tuple(range(10)),
    run=functools.partial(_adapters.run, arms=("series", "parallel", "lora", "head")),
    budget_s=150,
    note="The task is that of a network tuned as a whole, so that no arm can express it exactly. Learning rate chosen for each "
    "arm from the same three. The last two expectations are the ranking at equal size in the paper's order.",
)
