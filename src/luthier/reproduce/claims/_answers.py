"""A question with many right answers in several forms, and a policy over all answers, for claims about diversity.

Twelve of 48 answers are right; they come in four forms of three. A form's answers have nearly the same vector, wrong answers
have vectors of their own. The policy starts with some of the right answers far likelier than others.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Objective, stream
from luthier.objectives.policy.entropy_bonus import EntropyBonus
from luthier.objectives.policy.grpo import GRPO
from luthier.reproduce.claim import TUNING_SEED
from luthier.reproduce.claims._bandit import descend, of_actions, total

ANSWERS, FORMS, EACH, WIDTH, SAMPLES = 48, 4, 3, 16, 16
RATES, STOPS = (0.03, 0.1), (50, 200)
MOST = {"distinct": FORMS * EACH, "forms": FORMS}
F64 = torch.float64
Shape = Callable[["Question", Tensor, float], Tensor]


@dataclass(frozen=True)
class Question:
    """form (ANSWERS,): its right form, -1 for wrong answers; vectors (ANSWERS, WIDTH); start: logits of the policy."""

    form: Tensor
    vectors: Tensor
    start: Tensor

    @classmethod
    def random(cls, seed: int) -> Question:
        """Normal logits with deviation 1.5 and normal vectors; answers of a form differ by a third of that."""
        g = stream(seed, "claim.answers")
        form = torch.full((ANSWERS,), -1)
        form[: FORMS * EACH] = torch.arange(FORMS).repeat_interleave(EACH)
        own = torch.randn(ANSWERS, WIDTH, generator=g, dtype=F64)
        centres = torch.randn(FORMS, WIDTH, generator=g, dtype=F64)
        vectors = torch.where(form[:, None] >= 0, centres[form.clamp(min=0)] + own / 3, own)
        return cls(form, vectors, 1.5 * torch.randn(ANSWERS, generator=g, dtype=F64))

    def reward(self, answers: Tensor) -> Tensor:
        """1 for right answers (n,), 0 for wrong ones."""
        return (self.form[answers] >= 0).double()

    def figures(self, logits: Tensor) -> dict[str, float]:
        """Probability of a right answer; expected numbers of different right answers and right forms in 16 samples."""
        p, right = logits.softmax(0), self.form >= 0
        forms = torch.zeros(FORMS, dtype=F64).index_add(0, self.form[right], p[right])
        return {
            "pass_1": float(p[right].sum()),
            "distinct": float((1 - (1 - p[right]) ** SAMPLES).sum()),
            "forms": float((1 - (1 - forms).clamp(min=0) ** SAMPLES).sum()),
        }


def plain(question: Question, answers: Tensor, strength: float) -> Tensor:
    """The reward as it is."""
    return question.reward(answers)


def trained(
    shape: Shape, seed: int, lr: float, strength: float, stops: Sequence[int] = STOPS
) -> dict[int, dict[str, float]]:
    """Figures after each number of GRPO steps on 16 samples; with the reward unshaped, strength is an entropy bonus."""
    question, group = Question.random(seed), torch.zeros(SAMPLES, dtype=torch.long)
    grpo = GRPO(scale="none", normalise="token")
    objective: Objective = grpo + strength * EntropyBonus() if shape is plain and strength else grpo

    def loss(logits: Tensor, step: int) -> Tensor:
        p = logits.softmax(-1)
        drawn = torch.multinomial(
            p.detach(), SAMPLES, replacement=True, generator=stream(seed, "claim.answers.draw", step)
        )
        signals = {**of_actions(logits, question.start, drawn),
                   "token_entropy": (-(p * p.clamp_min(1e-300).log()).sum().expand(SAMPLES, 1),),
                   "advantage": (grpo.advantage(shape(question, drawn, strength), group),)}  # fmt: skip
        return total(objective, "group", ("text",), signals)

    return {n: question.figures(z) for n, z in descend(question.start, loss, lr, stops).items()}


@functools.cache
def tuned(shape: Shape, strengths: tuple[float, ...], measure: str) -> tuple[float, float, int]:
    """Learning rate, strength and steps of the highest pass rate plus share of what is there, on questions not reported."""
    found = {}
    for at in itertools.product(RATES, strengths):
        worlds = [trained(shape, TUNING_SEED + i, *at) for i in range(3)]
        found.update({(*at, n): sum(w[n][measure] / MOST[measure] + w[n]["pass_1"] for w in worlds) for n in STOPS})
    return max(found, key=lambda at: found[at])


def compared(
    arms: Mapping[str, tuple[Shape, tuple[float, ...]]], seed: int, measure: str
) -> dict[str, dict[str, float]]:
    """Each arm (shaping, strengths to try) at its own best settings."""
    out = {}
    for name, (shape, strengths) in arms.items():
        lr, strength, steps = tuned(shape, strengths, measure)
        out[name] = trained(shape, seed, lr, strength, (steps,))[steps]
    return out
