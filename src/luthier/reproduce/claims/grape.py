"""Are the answers that the model itself finds likeliest the best ones to tune it on?

Every subtraction is answered in four styles, all of them right. The base has never seen subtraction; one style is close to
how it writes addition. Arms differ by which one answer to each prompt they train on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from random import Random
from typing import Any

from luthier.core import DataContext
from luthier.data.select.grape import Grape
from luthier.lab.language import World
from luthier.measure._subject import scored
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._language import Judge, rows, trained_on, weights

PROMPTS, RATES = 200, (1e-3, 3e-3)
SETTINGS: Mapping[str, Any] = {"train": {"steps": 50, "batch": 16, "warmup": 0.1}}
Row = dict[str, str]


def styles(prompt: str, worked: str) -> list[str]:
    """Four right answers: worked from the last digit, from the first, result before its steps, and question repeated."""
    units, tens, answer = worked.split(" ; ")
    return [worked, f"{tens} ; {units} ; {answer}", f"{tens} = {units} ; {answer}", f"{prompt} {worked}"]


def pool(seed: int) -> list[list[Row]]:
    """For each of 200 prompts its answers in all styles."""
    made = World().rows("subtract", "train", PROMPTS, seed)
    return [[{"prompt": r["prompt"], "response": s} for s in styles(r["prompt"], r["response"])] for r in made]


def picked(arm: str, seed: int, judge: Judge) -> list[Row]:
    """One answer to each prompt."""
    every, rng = pool(seed), Random(seed)
    if arm == "random":
        return [rng.choice(answers) for answers in every]
    if arm == "longest":
        return [max(answers, key=lambda a: len(a["response"].split())) for answers in every]
    flat = [a for answers in every for a in answers]
    subject = judge.wearing(judge.base)

    def score(asked: Any) -> Any:
        sums, counts = scored(subject, [r["prompt"] for r in asked], [r["response"] for r in asked], "grape")
        return sums / counts

    return [flat[i] for i in Grape()(flat, DataContext(score=score)).index.tolist()]


def figures(arm: str, seed: int, lr: float, split: str) -> dict[str, float]:
    """Accuracy on fresh subtractions, and on additions, which the base knew."""
    judge = Judge(max_new=40)
    plain = {"train": {**SETTINGS["train"], "lr": lr}}
    got = weights(trained_on(picked(arm, seed, judge), plain, seed))
    return {"new": judge.accuracy(got, rows("subtract", split, 60)), "old": judge.accuracy(got, rows("add", split, 60))}


@functools.cache
def tuned(arm: str) -> float:
    """The learning rate of the highest accuracy on other rows and another seed."""
    return max(RATES, key=lambda lr: figures(arm, TUNING_SEED, lr, "stop")["new"])


def run(seed: int) -> dict[str, dict[str, float]]:
    """Answers that the base finds likeliest, answers by lot, and the longest ones."""
    return {arm: figures(arm, seed, tuned(arm), "test") for arm in ("grape", "random", "longest")}


CLAIM = Claim(
    component="grape",
    papers=(165,),
    source="arXiv 2502.04194",
    says="Tuning on the answers that the model finds likeliest gives higher accuracy than on answers by lot or of another choice.",
    world="language: 200 subtractions, each answered in four right styles; a base that knows addition; equally many steps",
    expect="grape > random",
    also=("grape > longest", "grape > random : old"),
    measure="new",
    seeds=tuple(range(5)),
    run=run,
    budget_s=150,
    note="The learning rate of each arm is chosen from the same two on rows and a seed that are not reported. `old` is accuracy "
    "on addition. The likeliest style is mostly the one that repeats the question, since copied tokens are cheap.",
)
