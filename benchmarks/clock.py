"""What one side of a cell measured in its own process: seconds of each step, work done, memory."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.memory import status


@dataclass
class Clock:
    """Marks the ends of steps; tokens: real tokens of the steps so far, where steps of the two sides hold different work."""

    marks: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    level: float = 0.0

    def ready(self) -> None:
        """Libraries are imported and the model is made: what comes on top now is training."""
        self.level = status()["VmRSS"]

    def tick(self, tokens: int = 0) -> None:
        """A step ended, with so many tokens seen since the start."""
        self.marks.append(time.perf_counter())
        self.tokens.append(tokens)

    def figures(self) -> dict[str, float]:
        """Median seconds of a step after the first two, seconds per 1,000 tokens where they were counted, and memory in MiB."""
        steps = [b - a for a, b in itertools.pairwise(self.marks[1:])]
        peak = status()["VmHWM"]
        out = {"step": statistics.median(steps), "peak_mib": peak, "grown_mib": peak - self.level}
        if any(self.tokens):
            out["kilotoken"] = 1000 * sum(steps) / (self.tokens[-1] - self.tokens[1])
        return out
