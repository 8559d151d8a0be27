"""Reward times diversity: of a prompt's completions only those that are good and unlike the others gain.

Paper: arXiv 2509.02534 (DARLING).   Formula: r_i * Div_i, Div_i the share of the prompt's other completions that are not
equivalent to completion i. Equivalent: equal answers, common n-grams, or close embeddings; chains of such make one class.
Takes: any reward that is not negative, and sampled groups.   Gives: one number per completion.
Choose it when: many answers are right and the policy settles on one.   Rather not when: right answers are all the same.
Relatives: dra (similarity instead of classes), entropy_bonus (randomness of tokens, not of answers).

>>> import torch
>>> distinct_share(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0])).tolist()  # two alike, one apart
[0.5, 0.5, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Card, Reward, Row, component
from luthier.core.errors import DataError, sentence
from luthier.reward._group import alike, classes, groups_of, same_group, scores_of

CARD = Card(
    name="Diversity-aware reward (DARLING)",
    source="arXiv 2509.02534",
    papers=(285,),
    cost="that of the reward, and one comparison of every two completions of a prompt",
    limits=(
        "all completions of a prompt different: Div is 1, the reward itself",
        "all equivalent and floor 0: every reward is 0, so that the advantage is zero",
        "zero reward stays zero",
    ),
    differs=(
        "equivalence is by answer, n-grams or embedding; the paper trains a classifier, which the released code asks of a server",
        "the released code raises a diversity below 0.1 to 0.1 (floor: 0.1); here it is the formula, 0, unless given",
        "the paper's advantage has no division by the deviation and its loss is a mean over tokens: "
        "grpo with scale: none, normalise: token",
        "negative rewards are refused: times a diversity they would punish what is different",
        "a prompt's only completion has Div 1",
    ),
    use_when="group policy gradients settle on one of many right answers",
    avoid_when="there is one right answer, or rewards are negative",
    relatives=("reward.combine.dra", "reward.combine.weighted", "objectives.policy.grpo"),
)


def distinct_share(kind: Tensor, group: Tensor) -> Tensor:
    """Share of each completion's group that is of another kind, itself not counted: (n,), (n,) -> (n,) in [0, 1]; 1 alone."""
    group_of = same_group(group)
    others = (group_of & (kind[:, None] != kind[None, :])).sum(1)
    size = group_of.sum(1) - 1
    return torch.where(size > 0, others / size.clamp(min=1), torch.ones(len(kind)))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DiversityReward(Reward):
    """reward: what is multiplied; by: when two completions are equivalent; tag: only what the last <tag> holds is compared.

    threshold: share of common 3-grams (ngram) or cosine (embed) from which two are equivalent; embedder: a
    sentence-transformers name or folder, or "minilm"; floor: smallest diversity.
    """

    reward: Reward
    by: Literal["exact", "ngram", "embed"] = "exact"
    tag: str | None = None
    threshold: Annotated[float, Gt(0), Le(1)] = 0.7
    embedder: str = "minilm"
    floor: Annotated[float, Ge(0), Le(1)] = 0.0

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Tensor:
        scores, group = scores_of(self.reward, rows, completions, self.id), groups_of(rows)
        if (scores < 0).any():
            came = f"{float(scores.min()):g} from {self.reward.id}"
            raise DataError(
                sentence(self.id, "rewards of 0 or more", came, "Shift them, for example to 0 for wrong answers")
            )
        kind = torch.zeros(len(rows), dtype=torch.long)
        for g in group.unique():
            at = (group == g).nonzero()[:, 0]
            like = alike(
                [completions[int(i)] for i in at], self.by, tag=self.tag, threshold=self.threshold, model=self.embedder
            )
            kind[at] = classes(like)
        return scores * distinct_share(kind, group).clamp(min=self.floor).to(scores)
