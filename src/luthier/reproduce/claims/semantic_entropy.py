"""Does the scatter of a model's own answers tell which of them are wrong, without labels?

The language model is asked for facts about people it knows and about people it never met. Its greedy answers are judged;
each score ranks the questions by how doubtful the answer is.
"""

from __future__ import annotations

import torch

from luthier.core import MeasureContext, stream
from luthier.measure.calibration.semantic_entropy import SemanticEntropy
from luthier.measure.quality.exact_match import ExactMatch
from luthier.ops.ranks import auroc
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._language import Judge, rows

EACH, SAMPLES, MAX_NEW = 24, 10, 4


def run(seed: int) -> dict[str, dict[str, float]]:
    """AUROC against wrong greedy answers of semantic entropy, of the answer's own unlikeliness, and of random scores."""
    judge = Judge(MAX_NEW)
    asked = [r for skill in ("fact", "fact_withheld") for r in rows(skill, "test", EACH, seed)]
    subject = judge.wearing(judge.base)
    ctx = MeasureContext(seed=seed, verify=lambda row, text: float(judge.world.judge(dict(row), text)["correct"]))
    wrong = 1 - torch.tensor(next(iter(ExactMatch(max_new=MAX_NEW)(subject, asked, ctx))).items)
    entropy = SemanticEntropy(samples=SAMPLES, max_new=MAX_NEW).entropies(subject, asked, ctx)
    prompts = [r["prompt"] for r in asked]
    said = [one for (one,) in subject.generate(prompts, temperature=0.0, max_new=MAX_NEW)]
    total, count = subject.logp(prompts, said)
    scores = {
        "semantic_entropy": torch.tensor(entropy),
        "likelihood": -total / count,
        "random": torch.rand(len(asked), generator=stream(seed, "claim.semantic_entropy.random")),
    }
    return {name: {"auroc": float(auroc(score, wrong))} for name, score in scores.items()}


CLAIM = Claim(
    component="semantic_entropy",
    papers=(38,),
    source="arXiv 2410.17234",
    says="Without any label, the entropy over meanings of sampled answers tells questions that a model cannot answer from those "
    "that it can.",
    world="language: the base asked for 24 facts that it learned and 24 about people it never met",
    expect="semantic_entropy > random",
    also=("semantic_entropy > likelihood",),
    measure="auroc",
    seeds=tuple(range(8)),
    run=run,
    budget_s=30,
    note="Answers are single words, so meanings are equal texts. The likelihood of the greedy answer is the plain alternative; "
    "it needs one forward pass in place of ten samples.",
)
