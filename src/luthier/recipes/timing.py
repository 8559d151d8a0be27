"""How long a run will take, from steps of it that were really made: nothing is looked up and nothing is guessed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from luthier.core.config import build_component
from luthier.core.errors import counted
from luthier.recipes.build import cache_reference, prepare
from luthier.recipes.recipe import Recipe
from luthier.train.loop import Loop

MEASURED = 4
"""Steps that are timed, at least."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the timed steps, in order; how many steps the run has; seconds before its first step."""

    steps: int
    measured: tuple[float, ...]
    before: float

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        return sum(self.measured) / max(len(self.measured), 1)

    @property
    def training(self) -> float:
        """Seconds of all steps."""
        return self.steps * self.step

    def as_dict(self) -> dict[str, Any]:
        """Plain values; all in seconds but the number of steps."""
        return {"training": self.training, "step": self.step, "measured": list(self.measured), "before": self.before}

    def line(self) -> str:
        """One sentence."""
        if not self.measured:
            return "there is no step to time"
        timed = counted(len(self.measured), "step")
        spread = f"{_words(min(self.measured))} to {_words(max(self.measured))} over {timed}, measured on this machine"
        return (f"about {_words(self.training)} of training: {counted(self.steps, 'step')} of {_words(self.step)} ({spread}); "
                f"{_words(self.before)} before the first step; measuring and saving come on top")  # fmt: skip


def _words(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 90:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def time_steps(recipe: Recipe, accelerator: Any = None) -> Timing:
    """Load the model, make a first step to warm up, then time the next ones; nothing is written.

    Where samples are drawn only now and then, whole rounds are timed. A run of one step is timed by that step.
    """
    marks: list[float] = []
    rounds = -(-MEASURED // every(recipe)) * every(recipe)

    def tell(event: Mapping[str, Any]) -> None:
        if event["kind"] == "step":
            marks.append(time.perf_counter())
            loop.stop = len(marks) > rounds

    began = time.perf_counter()
    prepared = prepare(recipe, None, tell, accelerator)
    cache_reference(prepared)
    loop = Loop(prepared.job)
    ready = time.perf_counter()
    loop.run()
    marks = marks if len(marks) > 1 else [ready, *marks]  # the only step there is has to serve
    measured = tuple(b - a for a, b in pairwise(marks))
    return Timing(loop.steps, measured, ready - began)


def every(recipe: Recipe) -> int:
    """Number of steps after which the same work comes again: those of a round of sampling, else 1."""
    if recipe.loop is not None:
        return int(build_component(recipe.loop, "loops", "loop").steps)
    return recipe.rollout.reuse if recipe.reward is not None else 1
