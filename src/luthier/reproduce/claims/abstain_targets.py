"""Does a model learn from its own scatter to refuse what it does not know, and to answer the rest?

The language model's samples on training questions, about people it knows and people it never met, become targets. It is then
asked about other people. Controls: its own answers throughout, and as many refusals on questions drawn at random.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from luthier.core import DataContext
from luthier.core.streams import python_stream
from luthier.data.targets.abstain_targets import AbstainTargets
from luthier.lab.language import World
from luthier.measure.calibration.abstention import figures
from luthier.recipes.run import subject_of
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._language import Judge, rows, trained_on

REFUSAL, SAMPLES, MAX_NEW = "please tell me", 8, 4
KNOWN, UNKNOWN = "fact", "fact_withheld"
RATES = (5e-4, 2e-3)
ARMS = ("abstain", "own_answers", "random_refusals")


@functools.lru_cache(maxsize=1)
def targets(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Training rows of each arm from the base's samples; its greedy answer is its own."""
    judge = Judge(MAX_NEW)
    asked = rows(KNOWN, "train", 48, seed) + rows(UNKNOWN, "train", 24, seed)
    prompts, subject = [r["prompt"] for r in asked], judge.wearing(judge.base)
    drawn = subject.generate(prompts, samples=SAMPLES, max_new=MAX_NEW, role=f"claim.abstain_targets/{seed}")
    own = [one for (one,) in subject.generate(prompts, temperature=0.0, max_new=MAX_NEW)]
    given = [{"prompt": p, "responses": d, "own": o} for p, d, o in zip(prompts, drawn, own, strict=True)]
    builders = {"abstain": AbstainTargets(refusal=REFUSAL), "own_answers": AbstainTargets(threshold=math.inf)}
    made = {name: [dict(r) for r in build(given, DataContext()).rows] for name, build in builders.items()}
    count = sum(r["response"] == REFUSAL for r in made["abstain"])
    at = set(python_stream(seed, "claim.abstain_targets.random").sample(range(len(own)), count))
    made["random_refusals"] = [{**r, "response": REFUSAL} if i in at else r for i, r in enumerate(made["own_answers"])]
    return made


def scores(arm: str, seed: int, lr: float, split: str) -> dict[str, float]:
    """AUROC of refusing the unknown against the known, accuracy among the answered, engagement, distance."""
    settings = {"train": {"steps": 40, "batch": 16, "lr": lr, "warmup": 0.1}}
    subject, world = subject_of(trained_on(targets(seed)[arm], settings, seed)), World()
    asked = [r for skill in (KNOWN, UNKNOWN) for r in rows(skill, split, 12)]
    said = [one for (one,) in subject.generate([r["prompt"] for r in asked], temperature=0.0, max_new=MAX_NEW)]
    answered = [text != REFUSAL for text in said]
    right = [float(world.judge(r, text)["correct"]) for r, text in zip(asked, said, strict=True)]
    engagement, accuracy, distance = figures(answered, right)
    refused_more = (sum(answered[:12]) - sum(answered[12:])) / 12
    return {"auroc": 0.5 + refused_more / 2, "accuracy": accuracy, "engagement": engagement, "distance": distance}


@functools.cache
def best_rate(arm: str) -> float:
    """The learning rate of the smallest distance on held-out people, at a seed that is not reported."""
    return min(RATES, key=lambda lr: scores(arm, TUNING_SEED, lr, "stop")["distance"])


def run(seed: int) -> dict[str, dict[str, float]]:
    """All arms at their own best learning rate."""
    return {arm: scores(arm, seed, best_rate(arm), "test") for arm in ARMS}


CLAIM = Claim(
    component="abstain_targets",
    papers=(38,),
    source="arXiv 2410.17234",
    says="Refusals placed by semantic entropy, without labels, teach a model to abstain where it would be wrong, so that what it "
    "still answers is right more often.",
    world="language: 48 known and 24 unknown facts to learn from, 12 known and 12 unknown about other people",
    expect="abstain > random_refusals",
    also=(
        "abstain > own_answers : accuracy",
        "abstain < own_answers : distance",
        "abstain < random_refusals : distance",
    ),
    measure="auroc",
    seeds=tuple(range(5)),
    run=run,
    note="auroc: of refusing against answering, unknown people against known ones, 0.5 for refusals by chance. All arms train on "
    "the model's own samples only, for as many steps.",
)
