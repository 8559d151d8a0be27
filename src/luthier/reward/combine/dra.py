"""Reward divided by redundancy: near-duplicates among a prompt's completions share a reward that unique ones keep.

Paper: arXiv 2505.09655 (DRA-GRPO).   Formula: r_i / sum_j cos(e_i, e_j) over the completions j of the prompt, i itself among
them, with e the embedding of a completion.
Takes: any reward, and sampled groups.   Gives: one number per completion.
Choose it when: right answers come in several forms and one of them takes over.
Rather not when: rewards are negative; then a wrong answer suffers less among others like it.
Relatives: diversity_reward (classes of equivalent answers), entropy_bonus (randomness of tokens).

>>> import torch
>>> redundancy(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0])).tolist()
[2.0, 2.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from luthier.core import Card, Reward, Row, component
from luthier.reward._group import cosines, embedder, groups_of, same_group, scores_of

CARD = Card(
    name="Diversity-aware reward adjustment (DRA)",
    source="arXiv 2505.09655",
    papers=(348,),
    cost="that of the reward, and one embedding of each completion",
    limits=(
        "all completions of a prompt alike: every reward is divided by their number, advantages in standard deviations stay",
        "no two alike (cosine 0): the reward itself",
        "zero reward stays zero",
        "what other prompts got changes nothing",
    ),
    differs=(
        "the sum runs over the prompt's own completions, as the formula says; the released code sums over all that a process "
        "holds",
        "a negative cosine counts as 0, so that the divisor lies between 1 and the size of the group; the released code lets it "
        "reach 0 and adds 1e-6",
        "the embedder is a parameter; the paper's is larger",
    ),
    use_when="right answers come in several forms that should all stay",
    avoid_when="rewards are negative, or completions differ in words only",
    relatives=("reward.combine.diversity_reward", "reward.combine.weighted", "objectives.policy.grpo"),
)


def redundancy(vectors: Tensor, group: Tensor) -> Tensor:
    """Sum of max(cosine, 0) over the completions of the same group, itself counted: (n, d), (n,) -> (n,), 1 at least."""
    return (cosines(vectors).clamp(min=0) * same_group(group)).sum(1).clamp(min=1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DRA(Reward):
    """reward: what is divided; embedder: a sentence-transformers name or folder, or "minilm"."""

    reward: Reward
    embedder: str = "minilm"

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Tensor:
        scores = scores_of(self.reward, rows, completions, self.id)
        vectors = embedder(self.embedder)(list(completions))
        return scores / redundancy(vectors, groups_of(rows)).to(scores)
