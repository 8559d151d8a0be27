"""Does a reward divided by redundancy keep more forms of right answers than GRPO, or than a bonus for being different?"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._answers import Question, compared, plain
from luthier.reward._group import cosines
from luthier.reward.combine.dra import redundancy


def shaped(question: Question, answers: Tensor, strength: float) -> Tensor:
    """Reward divided by the redundancy of the answer's vector in the group."""
    return question.reward(answers) / redundancy(question.vectors[answers], torch.zeros(len(answers)))


def bonus(question: Question, answers: Tensor, strength: float) -> Tensor:
    """Reward plus strength times one minus the mean cosine with the group, for right and wrong answers alike."""
    return question.reward(answers) + strength * (1 - cosines(question.vectors[answers]).mean(1))


def run(seed: int) -> dict[str, dict[str, float]]:
    """GRPO with the reward divided by redundancy, as it is, and with an additive bonus."""
    arms = {"dra": (shaped, (0.0,)), "grpo": (plain, (0.0,)), "bonus": (bonus, (0.1, 0.3, 1.0))}
    return compared(arms, seed, "forms")


CLAIM = Claim(
    component="dra",
    papers=(348,),
    source="arXiv 2505.09655",
    says="GRPO with rewards divided by redundancy keeps more forms of right answers and is no less accurate.",
    world="bandit of 48 answers, 12 of them right in 4 forms; 16 own samples a step, exact expectations",
    expect="dra > grpo",
    also=("dra > grpo : pass_1", "dra > bonus", "dra > bonus : pass_1", "dra > grpo : distinct"),
    measure="forms",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="`forms` is the expected number of right forms in 16 samples, at most 4. Rates, steps and the weight of the bonus are "
    "chosen for each arm by `forms` / 4 plus `pass_1` on questions that are not reported. Advantages are not divided by the "
    "deviation in any arm.",
)
