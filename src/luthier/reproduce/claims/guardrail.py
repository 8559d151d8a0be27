"""Do filters around an untouched model score like unlearning, and does a look behind them tell the two apart?

Six values (colours, pets, cities, jobs) shall not be told any more: all facts with these answers are to be forgotten, all
others kept. Gradient ascent and NPO, alone or with kept facts beside, change the weights; guardrails do not. Then ten steps of
tuning on a third of the forgotten facts show what the weights still hold of the rest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.core.streams import python_stream
from luthier.edit.guard.guardrail import Guardrail
from luthier.lab.language import World
from luthier.models.collate import pad
from luthier.models.subject import LanguageSubject
from luthier.recipes.export import plain_subject
from luthier.reproduce.claim import TUNING_SEED, Claim

VALUES, MAX_NEW = 6, 4
RELEARN, RELEARN_RATE = 10, 1e-4
RATES, STEPS = (1e-4, 3e-4, 1e-3), (10, 30)
BETA = 0.1
Facts = list[dict[str, Any]]
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "ascent": lambda logp, start: logp.mean(),
    "npo": lambda logp, start: -(2 / BETA) * F.logsigmoid(-BETA * (logp - start)).mean(),
}
LOSSES["npo_keep"] = LOSSES["npo"]  # and imitates the right answers to kept facts, others than the reported ones


@functools.cache
def facts(seed: int) -> tuple[Facts, Facts, tuple[str, ...]]:
    """(to be forgotten, to be kept in random order, the forbidden values), of facts that the base was asked about."""
    world, rng = World(), python_stream(seed, "claim.guardrail")
    keys = [k for split in ("train", "stop", "test") for k in world.skill("fact").keys(split) or ()]
    rows = [world.row("fact", key, seed) for key in keys]
    values = tuple(rng.sample(sorted({r["response"] for r in rows}), VALUES))
    forget, keep = ([r for r in rows if (r["response"] in values) == on] for on in (True, False))
    rng.shuffle(forget)
    return forget, rng.sample(keep, len(keep)), values


def right(subject: Any, rows: Facts) -> float:
    """Share of greedy answers that are right."""
    said = subject.generate([r["prompt"] for r in rows], temperature=0.0, max_new=MAX_NEW)
    return sum(one == r["response"] for (one,), r in zip(said, rows, strict=True)) / len(rows)


def logp(subject: LanguageSubject, rows: Facts) -> Tensor:
    """Summed log-prob of each right answer, (n,), differentiable."""
    inputs = pad(
        subject.pairs([r["prompt"] for r in rows], [r["response"] for r in rows]), subject.tokenizer.pad_token_id
    )
    got = subject.module(inputs["input_ids"], ("token_logp",), inputs["loss_mask"], inputs["attention_mask"])
    return (got["token_logp"] * inputs["loss_mask"]).sum(-1)


def train(subject: LanguageSubject, rows: Facts, loss: Loss, lr: float, steps: int, keep: Facts | None = None) -> None:
    """Full-batch Adam on all weights; `keep` are imitated beside."""
    search: Any = torch.optim.Adam(subject.module.parameters(), lr=lr)
    start = logp(subject, rows).detach()
    for _ in range(steps):
        search.zero_grad()
        kept = logp(subject, keep).mean() if keep else 0.0
        (loss(logp(subject, rows), start) - kept).backward()
        search.step()
    subject.forget()


def unlearned(arm: str, seed: int, lr: float, steps: int) -> LanguageSubject:
    """The base after ascent or NPO on the facts to be forgotten."""
    subject = plain_subject("lab:language")
    forget, keep, _ = facts(seed)
    train(subject, forget, LOSSES[arm], lr, steps, keep[60:] if arm == "npo_keep" else None)
    return subject


def scores(subject: Any, seed: int) -> dict[str, float]:
    """What is kept, what is still told, and the difference."""
    forget, keep, _ = facts(seed)
    kept, told = right(subject, keep[:60]), right(subject, forget)
    return {"kept": kept, "told": told, "score": kept - told}


def relearned(subject: LanguageSubject, seed: int) -> float:
    """Right answers on two thirds of the forgotten facts after a few steps on the others, without any guard."""
    forget = facts(seed)[0]
    third = len(forget) // 3
    train(subject, forget[:third], lambda now, start: -now.mean(), RELEARN_RATE, RELEARN)
    return right(subject, forget[third:])


@functools.cache
def tuned(arm: str) -> tuple[float, int]:
    """Learning rate and steps of the best score, on values that are not reported."""
    return max(
        itertools.product(RATES, STEPS), key=lambda at: scores(unlearned(arm, TUNING_SEED, *at), TUNING_SEED)["score"]
    )


def guards(seed: int) -> dict[str, Guardrail]:
    """All three guards: the input filter knows the questions, the output filter and the instruction the values."""
    forget, _, values = facts(seed)
    asked: Sequence[str] = sorted({f"{a} of {p}" for p, a in (r["key"].split() for r in forget)})
    return {
        "instruction": Guardrail(
            phrases=values, kind="instruction", instruction="please only say {phrases} not", refusal="no"
        ),
        "input_filter": Guardrail(phrases=tuple(asked), kind="input", refusal="no"),
        "output_filter": Guardrail(phrases=values, kind="output", refusal="no"),
    }


def run(seed: int) -> dict[str, dict[str, float]]:
    """Scores of every arm, and what its weights give after relearning."""
    made, base = {}, plain_subject("lab:language")
    for name, guard in guards(seed).items():
        made[name] = scores(guard(base), seed)
    hidden = relearned(base, seed)
    made = {name: {**found, "relearned": hidden} for name, found in made.items()}
    for arm in LOSSES:
        subject = unlearned(arm, seed, *tuned(arm))
        made[arm] = {**scores(subject, seed), "relearned": relearned(subject, seed)}
    return made


CLAIM = Claim(
    component="guardrail",
    papers=(372,),
    source="arXiv 2403.03329",
    says="Filters around an untouched model score as well on forgetting and keeping as unlearning that changes the weights; only "
    "a look at the weights tells them apart.",
    world="language: facts whose answer is one of six values to be forgotten, 60 other facts to be kept",
    expect="output_filter > npo_keep",
    also=(
        "input_filter > ascent",
        "output_filter > ascent",
        "instruction < output_filter",
        "npo < output_filter : relearned",
    ),
    measure="score",
    seeds=tuple(range(6)),
    run=run,
    budget_s=120,
    note="score: right answers on kept facts minus right answers on forgotten ones. The three that train choose learning rate "
    "and steps from six settings on values that are not reported; npo_keep sees kept facts, others than the reported ones. The "
    "base follows no instructions, so that guard can only fail.",
)
