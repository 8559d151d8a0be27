"""Do all answers of a prompt at once teach its distribution better than as many single answers?

The base was taught to choose among listed letters, and does so unevenly. Prompts of the test list other letters.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core.streams import python_stream
from luthier.lab.language import World
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._language import Judge, trained

PROMPTS, HELD, STEPS, RATES = 128, 60, 40, (2e-5, 1e-4, 5e-4)


def questions(split: str, n: int, seed: int) -> list[tuple[str, dict[str, float]]]:
    """(prompt, wanted distribution of answers), n of them."""
    world = World()
    return [(r["prompt"], dict(world.truth(r) or {})) for r in world.rows("choose", split, n, seed)]


def lines(arm: str, seed: int) -> list[dict[str, Any]]:
    """Rows of an arm: the answers of each prompt with their weights, or as many single answers drawn by these weights."""
    rng = python_stream(seed, "claim.diffuse")
    out: list[dict[str, Any]] = []
    for prompt, wanted in questions("train", PROMPTS, seed):
        answers, weights = list(wanted), list(wanted.values())
        if arm == "diffuse":
            out.append({"prompt": prompt, "responses": answers, "scores": weights})
        else:
            out += [{"prompt": prompt, "response": a} for a in rng.choices(answers, weights, k=len(answers))]
    return out


def divergence(judge: Judge, what: Any, split: str) -> float:
    """Mean KL(wanted || model) over other prompts, in nats; the model's mass on other answers counts against it."""
    asked = questions(split, HELD, 0)
    flat = [(prompt, answer, w) for prompt, wanted in asked for answer, w in wanted.items()]
    logp, _ = judge.wearing(what).logp([p for p, _, _ in flat], [a for _, a, _ in flat])
    return sum(w * (math.log(w) - x) for (_, _, w), x in zip(flat, logp.tolist(), strict=True)) / HELD


@functools.cache
def figures(arm: str, lr: float, seed: int, split: str) -> dict[str, float]:
    """Divergence of a tuned model on prompts of a split, and of the base."""
    judge = Judge()
    if arm == "base":
        return {"kl": divergence(judge, judge.base, split)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in lines(arm, seed)))
        train = {"steps": STEPS, "batch": 32, "warmup": 0.1, "lr": lr}
        objective = "diffuse" if arm == "diffuse" else "nll"
        made = trained({"data": {"train": str(path), "test": str(path)}, "objective": objective, "train": train}, seed)
    return {"kl": divergence(judge, made, split)}


@functools.cache
def tuned(arm: str) -> float:
    """The learning rate of the lowest divergence on prompts of the split stop, at a seed that is not reported."""
    return min(RATES, key=lambda lr: figures(arm, lr, TUNING_SEED, "stop")["kl"])


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both arms at their own best learning rate, and the base."""
    out = {arm: figures(arm, tuned(arm), seed, "test") for arm in ("diffuse", "sampled")}
    return {**out, "base": figures("base", 0.0, seed, "test")}


CLAIM = Claim(
    component="diffuse",
    papers=(329,),
    source="arXiv 2404.10859",
    says="Training on all valid answers of a prompt, each with its wanted probability, brings the model's answers on other "
    "prompts near to the wanted distribution, nearer than training on as many sampled answers.",
    world="language: choose one of two to five listed letters, 128 prompts, about 450 answers; KL on 60 other prompts",
    expect="diffuse < sampled",
    also=("diffuse < base",),
    measure="kl",
    seeds=tuple(range(6)),
    run=run,
    budget_s=120,
    note="Both arms have the same prompts, the same number of answers and steps; three learning rates are tried for each.",
)
