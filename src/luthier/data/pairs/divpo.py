"""Pairs for diversity: the rarest of the good answers against the most common of the bad ones.

Paper: arXiv 2501.18101 (DivPO).   Formula: good answers are those of the best `pool` by score, bad ones those of the worst;
chosen = most diverse good answer, rejected = least diverse bad one.
Takes: scored rows.   Gives: preference rows for any pair loss, with the column gap.
Choose it when: many answers are fine and a tuned model repeats a few.   Rather not when: only the best answer counts.
Relatives: cream_pairs, vote_pairs (other pairs of the same samples), diversity_reward (the same aim in a policy gradient).

>>> [round(x, 2) for x in rarity(["red sky", "red sea", "blue sea"])]
[0.5, 0.33, 0.5]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Le

from luthier.core import Build, Built, Card, DataContext, Needs, Row, component
from luthier.core.errors import DataError, sentence
from luthier.data.pairs._build import Answers, answers_of, gather, paired

CARD = Card(
    name="DivPO",
    source="arXiv 2501.18101",
    papers=(297,),
    needs=Needs(batch=("scored",)),
    cost="none by words; one pass of the model or the embedder over all answers otherwise",
    limits=(
        "pools of one answer each: best against worst by score",
        "the chosen score is never below the good pool's threshold, the rejected one never above the bad pool's",
        "chosen is never less diverse than the best-scored answer, rejected never more than the worst-scored",
    ),
    differs=(
        "no code of the authors is known; the rule is that of the abstract. How the share is meant is left open there: `of` offers "
        "a share of the answers and a share of the range of scores",
        "rarity is the mean over an answer's words of the share of answers that lack the word; the paper counts words of its task",
        "judging diversity by a model is not offered; write its verdicts into the column `diversity` (by: column)",
        "answers with the threshold's score belong to the pool",
    ),
    use_when="creative or open questions: many good answers, and a tuned model that repeats a few",
    avoid_when="there is one right answer",
    relatives=("data.pairs.cream_pairs", "data.pairs.vote_pairs", "reward.combine.diversity_reward"),
)


def pools(scores: Sequence[float], share: float, of: Literal["answers", "range"]) -> tuple[list[int], list[int]]:
    """(good, bad) answers: at or above the upper threshold, at or below the lower one.

    of: "answers" takes the score of the k-th best and worst, k = share of the answers and at least 1; "range" goes this share
    of the way from the best score down and from the worst up.

    >>> pools([1.0, 2.0, 3.0, 9.0], 0.5, "answers"), pools([1.0, 2.0, 3.0, 9.0], 0.5, "range")
    (([2, 3], [0, 1]), ([3], [0, 1, 2]))
    """
    ordered = sorted(scores)
    if of == "answers":
        k = max(1, int(share * len(scores)))
        upper, lower = ordered[-k], ordered[k - 1]
    else:
        reach = share * (ordered[-1] - ordered[0])
        upper, lower = ordered[-1] - reach, ordered[0] + reach
    return [i for i, s in enumerate(scores) if s >= upper], [i for i, s in enumerate(scores) if s <= lower]


def rarity(texts: Sequence[str]) -> list[float]:
    """Mean over each text's words of the share of the texts that lack the word; 0 for an empty text."""
    words = [t.casefold().split() for t in texts]
    found = Counter(w for one in words for w in set(one))
    return [sum(1 - found[w] / len(texts) for w in one) / max(1, len(one)) for one in words]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DivPO(Build):
    """pool: share that is good, and share that is bad; of: of the answers, or of the range of their scores.

    by: what diversity is: rare words, a low mean log-prob under the model to be tuned, distance of embeddings from the row's
    other answers, or the row's own column `diversity`.
    """

    pool: Annotated[float, Gt(0), Le(0.5)] = 0.25
    of: Literal["answers", "range"] = "answers"
    by: Literal["words", "probability", "embedding", "column"] = "words"

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Built:
        read = [answers_of(row, i + 1, self.id) for i, row in enumerate(rows)]
        diverse = self._diversity(rows, read, ctx)
        return gather(rows, lambda row, number: self._pair(row, read[number - 1], diverse[number - 1]), self.id)

    def _pair(self, row: Row, answers: Answers, diverse: list[float]) -> dict[str, Any] | str:
        if len(set(answers.scores)) < 2:
            return "all scores are equal"
        good, bad = pools(answers.scores, self.pool, self.of)
        best, worst = max(good, key=lambda i: diverse[i]), min(bad, key=lambda i: diverse[i])
        if answers.scores[best] <= answers.scores[worst]:
            return "the chosen answer scored no better than the rejected one"
        return paired(row, answers, best, worst)

    def _diversity(self, rows: Sequence[Row], read: Sequence[Answers], ctx: DataContext) -> list[list[float]]:
        if self.by == "column":
            return [answers_of(row, i + 1, self.id, "diversity").scores for i, row in enumerate(rows)]
        if self.by == "words":
            return [rarity(a.responses) for a in read]
        texts, sizes = [t for a in read for t in a.responses], [len(a.responses) for a in read]
        if self.by == "probability":
            if ctx.score is None:
                raise DataError(
                    sentence(self.id, "the model to be tuned, for by: probability", "none", "Choose by: words")
                )
            asked: list[Row] = [{**row, "response": t} for row, a in zip(rows, read, strict=True) for t in a.responses]
            return [(-x).tolist() for x in ctx.score(asked).split(sizes)]
        if ctx.embed is None:
            raise DataError(
                sentence(self.id, "an embedder of texts, for by: embedding", "none", "Set `embedder:` in the recipe")
            )
        units = torch.nn.functional.normalize(ctx.embed(texts), dim=-1).split(sizes)
        return [((len(u) - (u @ u.T).sum(1)) / max(1, len(u) - 1)).tolist() for u in units]
