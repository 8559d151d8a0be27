"""Does a reward times diversity keep many right answers without losing right ones?"""

from __future__ import annotations

from torch import Tensor

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._answers import Question, compared, plain
from luthier.reward.combine.diversity_reward import distinct_share


def shaped(question: Question, answers: Tensor, floor: float) -> Tensor:
    """Reward times the share of other answers in the group."""
    return question.reward(answers) * distinct_share(answers, 0 * answers).clamp(min=floor).double()


def run(seed: int) -> dict[str, dict[str, float]]:
    """GRPO with the reward times diversity, as it is, and with an entropy bonus."""
    arms = {
        "diversity_reward": (shaped, (0.0, 0.1)),
        "grpo": (plain, (0.0,)),
        "entropy_bonus": (plain, (0.003, 0.01, 0.03, 0.1)),
    }
    return compared(arms, seed, "distinct")


CLAIM = Claim(
    component="diversity_reward",
    papers=(285,),
    source="arXiv 2509.02534",
    says="GRPO with the reward times diversity gives more different right answers than GRPO, at a quality that is no lower.",
    world="bandit of 48 answers, 12 of them right; 16 own samples a step, exact expectations",
    expect="diversity_reward > grpo",
    also=(
        "diversity_reward > grpo : pass_1",
        "diversity_reward > entropy_bonus",
        "diversity_reward > entropy_bonus : pass_1",
    ),
    measure="distinct",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="`distinct` is the expected number of different right answers in 16 samples, at most 12. Rates, steps, the floor of "
    "the diversity and the weight of the bonus are chosen for each arm by `distinct` / 12 plus `pass_1` on questions that are not "
    "reported.",
)
