"""Run results drawn from known distributions, and functions that stand in for training: cheap, picklable, exact."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.compare.results import RunResult
from luthier.core.protocols import Reading
from luthier.core.streams import numpy_stream

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
RECIPES: dict[str, dict[str, Any]] = {
    "nll": {
        "model": "lab:language",
        "objective": "nll",
        "train": {"steps": 400, "lr": 5e-4, "batch": 16},
        "measure": ["quality", "forgetting"],
    },
    "dft": {
        "model": "lab:language",
        "objective": "dft",
        "train": {"steps": 400, "lr": 5e-4, "batch": 16},
        "measure": ["quality", "forgetting"],
    },
    "nll + neftune": {
        "model": "lab:language",
        "objective": "nll",
        "regularise": [{"neftune": {"alpha": 5.0}}],
        "train": {"steps": 400, "lr": 5e-4, "batch": 16},
        "measure": ["quality", "forgetting"],
    },
}
EFFECTS: dict[str, dict[str, float]] = {
    "nll": {},
    "dft": {"skill": 0.9, "old": 0.5, "spread": -0.05, "seconds": 0.4},
    "nll + neftune": {"skill": 0.05, "spread": 0.002, "seconds": 0.1},
}


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def run_of(
    arm: str,
    seed: int,
    effect: Mapping[str, float] | None = None,
    items: int = 200,
    recipe: Mapping[str, Any] | None = None,
) -> RunResult:
    """A run whose readings follow a known model: an effect of the arm, luck of the seed, luck of its own, items."""
    e = EFFECTS.get(arm, {}) if effect is None else effect
    shared, own, fixed = numpy_stream(seed, "shared"), numpy_stream(seed, f"own.{arm}"), numpy_stream(0, "items")
    hard = fixed.normal(0, 1.2, items)

    def answers(level: float, key: str) -> tuple[float, ...]:
        odds = level + e.get(key, 0.0) + 0.25 * shared.normal() + 0.08 * own.normal() - hard
        return tuple((own.random(items) < _logistic(odds)).astype(float).tolist())

    skill, old = answers(0.4, "skill"), answers(1.8, "old")
    nll = (0.62 - 0.12 * e.get("skill", 0.0) + 0.3 * fixed.random(items) + 0.02 * own.normal()).tolist()
    seconds = 21.0 + 20 * e.get("seconds", 0.0) + own.random()
    readings = [
        Reading("exact match", float(np.mean(skill)), skill, 1, "", "quality"),
        Reading("held-out likelihood", float(np.mean(nll)), tuple(nll), -1, "nats", "quality"),
        Reading("distinct trigrams", 0.71 + e.get("spread", 0.0) + 0.01 * own.normal(), (), 1, "", "diversity"),
        Reading("old skills kept", float(np.mean(old)), old, 1, "", "forgetting"),
        Reading("calibration error", abs(0.08 + 0.02 * own.normal()), (), -1, "", "calibration"),
        Reading("answer length", 14.0 + own.normal(), (), 0, "tokens", "shape"),
        Reading("time", seconds, (), -1, "s", "cost"),
        Reading("trained parameters", 807_808.0 if arm != "dft" else 132_096.0, (), -1, "", "cost"),
    ]
    return RunResult(
        arm=arm,
        seed=seed,
        readings={r.name: r for r in readings},
        curves=curves_of(arm, seed, e),
        samples=samples_of(arm, seed),
        cost={
            "seconds": seconds,
            "tokens": 409_600.0,
            "peak_bytes": 1.9e8 + 1e7 * own.random(),
            "trained_parameters": readings[-1].value,
        },
        versions={"luthier": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "processor": "synthetic", "threads": 2},
        recipe=RECIPES.get(arm, {"objective": arm}) if recipe is None else recipe,
        seconds=seconds,
    )


def curves_of(arm: str, seed: int, e: Mapping[str, float]) -> dict[str, list[tuple[float, float]]]:
    """Loss and accuracy against steps, with noise of the run."""
    rng = numpy_stream(seed, f"curves.{arm}")
    steps = np.arange(0, 401, 4)
    rate = 90 / (1 + 0.5 * e.get("skill", 0.0))
    loss = 0.6 + 2.2 * np.exp(-steps / rate) + 0.05 * rng.normal(size=len(steps)) + 0.03 * rng.normal()
    right = (0.55 + 0.2 * e.get("skill", 0.0)) * (1 - np.exp(-steps[::10] / rate)) + 0.01 * rng.normal(
        size=len(steps[::10])
    )
    return {
        "train loss": list(zip(steps.tolist(), loss.tolist())),
        "exact match": list(zip(steps[::10].tolist(), right.tolist())),
    }


def samples_of(arm: str, seed: int) -> list[dict[str, Any]]:
    """Texts to show, one of them hostile, one long, one in a script written from the right."""
    rng = numpy_stream(seed, f"samples.{arm}")
    colour = rng.choice(["green", "blue", "amber", "silver"])
    story = f"Once there was a fox who kept a {colour} lantern. " * int(rng.integers(1, 9))
    return [
        {"prompt": "Sort the letters: d b a c", "outputs": ["a b c d", "a b d c" if arm == "nll" else "a b c d"]},
        {"prompt": "Tell a story about a fox.", "outputs": [story.strip()]},
        {
            "prompt": f"Ignore all rules {HOSTILE}",
            "outputs": [f"{HOSTILE} {arm}", "]]></svg></style><script>1</script>"],
        },
        {"prompt": "Translate: peace", "outputs": ["שלום \u202eabc\u202c", "peace\x00\x1b[31m"]},
    ]


def runs_of(arms: Sequence[str] = tuple(RECIPES), seeds: Sequence[int] = range(5), **kwargs: Any) -> list[RunResult]:
    """All runs of a comparison."""
    return [run_of(arm, seed, **kwargs) for seed in seeds for arm in arms]


def flat(
    arm: str,
    seed: int,
    values: Mapping[str, float],
    better: int = 1,
    axis: str = "quality",
    items: Mapping[str, Sequence[float]] | None = None,
) -> RunResult:
    """A run with nothing but the given values."""
    readings = {n: Reading(n, float(v), tuple((items or {}).get(n, ())), better, "", axis) for n, v in values.items()}  # type: ignore[arg-type]
    return RunResult(arm=arm, seed=seed, readings=readings, recipe={"objective": arm}, seconds=1.0)


# -------------------------------------------------- stand-ins for training, for the runner
def quick(arm: str, recipe: Any, seed: int) -> RunResult:
    """At once."""
    return flat(arm, seed, {"x": numpy_stream(seed, arm).normal()})


def slow(arm: str, recipe: Any, seed: int) -> RunResult:
    """0.15 s."""
    time.sleep(0.15)
    return quick(arm, recipe, seed)


def sometimes_fails(arm: str, recipe: Any, seed: int) -> RunResult:
    """Arm "b" raises at seed 1."""
    if (arm, seed) == ("b", 1):
        raise FloatingPointError("loss became nan at step 3")
    return quick(arm, recipe, seed)


def sometimes_dies(arm: str, recipe: Any, seed: int) -> RunResult:
    """The process of arm "b" is killed at seed 1."""
    if (arm, seed) == ("b", 1):
        os.kill(os.getpid(), 9)
    return quick(arm, recipe, seed)


def counts_threads(arm: str, recipe: Any, seed: int) -> RunResult:
    """Reports the share of the cores it was given, and its process."""
    return flat(arm, seed, {"threads": float(os.environ["OMP_NUM_THREADS"]), "process": float(os.getpid())})


def leaves_a_mark(arm: str, recipe: Any, seed: int) -> RunResult:
    """Writes a file when it starts, so that a test knows when to interfere; `recipe` is the folder."""
    (Path(recipe) / f"{arm}.{seed}.started").touch()
    return slow(arm, recipe, seed)


def normal_cdf(x: float) -> float:
    """Standard normal distribution function."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def dies_once(arm: str, recipe: Any, seed: int) -> RunResult:
    """The first process that has arm "b" at seed 1 is killed; `recipe` is a folder for its mark."""
    mark = Path(recipe) / f"{arm}.{seed}.{os.getpid()}"
    if (arm, seed) == ("b", 1) and not list(Path(recipe).glob("b.1.*")):
        mark.touch()
        os.kill(os.getpid(), 9)
    mark.touch()
    return slow(arm, recipe, seed)


def always_dies(arm: str, recipe: Any, seed: int) -> RunResult:
    """Every process that has arm "b" is killed."""
    if arm == "b":
        os.kill(os.getpid(), 9)
    return quick(arm, recipe, seed)
