"""Do edits last and spare the rest when they are trained together, rather than one after another?

The language model is given new answers for 48 facts that it knows. Both orders train the same matrix for as many steps, each
with the place and learning rate of the best score on other facts. Unrelated prompts ask for facts that were not edited.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from luthier.core import MeasureContext
from luthier.core.streams import python_stream
from luthier.edit.locate.locft import LocFT
from luthier.lab.language import World
from luthier.measure.quality.edit_success import EditSuccess
from luthier.recipes.export import plain_subject
from luthier.reproduce.claim import TUNING_SEED, Claim

EDITS, STEPS, BATCH = 48, 6, 8
PLACES = tuple(f"layers.{block}.mlp.down_proj" for block in (1, 2, 3))
RATES = (1e-3, 4e-3)


def edits(seed: int) -> list[dict[str, Any]]:
    """Facts with another value of the same kind, a rewording, and a fact beside them that stays."""
    world, rng = World(), python_stream(seed, "claim.locft.edits")
    skill = world.skill("fact")
    keys = [k for split in ("train", "stop", "test") for k in skill.keys(split) or ()]
    drawn = rng.sample(keys, 2 * EDITS)
    made = []
    for key, beside in zip(drawn[:EDITS], drawn[EDITS:], strict=True):
        new = skill.corrupt(key, rng)
        plain, reworded = skill.prompts(key)
        made.append({"prompt": plain, "paraphrase": reworded, "response": new, "answer": new,
                     "locality": skill.prompts(beside)[0]})  # fmt: skip
    return made


def figures(order: Any, seed: int, sites: str, lr: float) -> dict[str, float]:
    """Readings of the edited model; as many optimiser steps in either order, none skipped."""
    subject = plain_subject("lab:language")
    rows = edits(seed)
    before = plain_subject("lab:language")
    epochs = STEPS if order == "depth" else STEPS * BATCH
    LocFT(sites=sites, epochs=epochs, batch=BATCH, lr=lr, order=order, stop=0.0, seed=seed)(subject, rows)
    subject.base = lambda: before  # type: ignore[method-assign]
    return {r.name: r.value for r in EditSuccess(max_new=4)(subject, rows, MeasureContext())}


@functools.cache
def tuned(order: str) -> tuple[str, float]:
    """Place and learning rate of the best score, for edits that are not reported."""
    return max(itertools.product(PLACES, RATES), key=lambda at: figures(order, TUNING_SEED, *at)["edit_score"])


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both orders at their own best place and rate."""
    return {order: figures(order, seed, *tuned(order)) for order in ("breadth", "depth")}


CLAIM = Claim(
    component="locft",
    papers=(34,),
    source="arXiv 2509.22072",
    says="Plain fine-tuning of one matrix edits many facts well when it goes over all edits in mini-batches for several epochs, "
    "and badly when it brings one edit after another to convergence.",
    world="language: 48 facts with new answers, rewordings, and 48 facts that must stay",
    expect="breadth > depth",
    also=(
        "breadth > depth : edit_efficacy",
        "breadth > depth : edit_generalisation",
        "breadth > depth : edit_locality",
    ),
    measure="edit_score",
    seeds=tuple(range(6)),
    run=run,
    budget_s=150,
    note="edit_score is the harmonic mean of efficacy, generalisation and locality. Both orders take 288 Adam steps, of one edit "
    "or of eight, and choose among three places and two learning rates.",
)
