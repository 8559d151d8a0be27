"""Does tuning contribute more to prompts like those it was tuned on than to text like that of pretraining?

The language model is tuned on a new skill in chat format. The contribution is read at fresh prompts of that skill, at chat
prompts of old skills, and at plain documents of the pretraining mixture cut in the middle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from luthier.core import MeasureContext
from luthier.lab.language import World
from luthier.measure.diagnose.tuco import TuCo
from luthier.recipes.run import subject_of
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._language import NEW, ROTATE, rows, trained

OTHER = "add+translate+fact"
ALPHAS = (0.0, 0.5, 1.0)
SETTINGS = {**ROTATE, "train": {"steps": 50, "batch": 16, "lr": 1e-3, "warmup": 0.1}}


def documents(n: int, seed: int) -> list[dict[str, Any]]:
    """The first halves of plain pretraining documents, as prompts."""
    made = (r["text"].split() for r in World().mixture(4 * n, seed) if r["kind"] != "chat")
    halves = [" ".join(words[: len(words) // 2]) for words in made if len(words) >= 6]
    return [{"prompt": text} for text in halves[:n]]


def run(seed: int) -> dict[str, dict[str, float]]:
    """Mean contribution on each kind of prompt, and nats per token on the new skill by scale of the tuning."""
    subject = subject_of(trained(SETTINGS, seed))
    plain = replace(subject, renders=lambda texts, room: [subject.tokenizer(t).input_ids for t in texts], _told={})
    ctx, new = MeasureContext(), rows(NEW, "test", 60)
    contribution, *scores = (r.value for r in TuCo(alphas=ALPHAS)(subject, new, ctx))
    (old,) = (r.value for r in TuCo()(subject, rows(OTHER, "test", 60), ctx))
    (text,) = (r.value for r in TuCo()(plain, documents(60, seed), ctx))
    return {
        "new_prompts": {"tuco": contribution},
        "old_prompts": {"tuco": old},
        "plain_text": {"tuco": text},
        **{f"alpha_{a:g}": {"nll": s} for a, s in zip(ALPHAS, scores, strict=True)},
    }


CLAIM = Claim(
    component="tuco",
    papers=(69,),
    source="arXiv 2506.23423",
    says="The tuning contribution is much lower on text like that of pretraining than on chats, and scaling the tuning's part "
    "of each layer moves behaviour between base and tuned model.",
    world="language: all weights tuned on rotate in chat format",
    expect="new_prompts > plain_text",
    also=("new_prompts > old_prompts", "alpha_0.5 < alpha_0 : nll", "alpha_1 < alpha_0.5 : nll"),
    measure="tuco",
    seeds=tuple(range(6)),
    run=run,
    note="The contribution is read at the last token of each prompt. The settings are those of one ordinary run; nothing is "
    "chosen for the outcome. alpha_0 is the base below the tuned embeddings, last norm and head.",
)
