"""Trajectory balance: sample every answer as often as its reward says, instead of only the best one.

Paper: arXiv 2406.05673.   Formula: (log Z + log p - log R)^2 with the probability p of a whole answer. Log Z is the mean of
log R - log p over the prompt's samples, so that the loss is their variance: the log-variance form of the released trainer.
Takes: sampled and scored completions, two or more of a prompt.   Gives: (B,) values, the squared deviations.
Choose it when: many answers are right and all of them are wanted.   Rather not when: one best answer is wanted (grpo).
Relatives: grpo (seeks the best answer), copg (the same gradient with `reference`, up to scale), entropy_bonus.

>>> import torch
>>> p = torch.tensor([0.25, 0.75]); log_variance(p.log(), (2 * p).log(), torch.zeros(2)).tolist()  # R in proportion to p
[0.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives.policy._groups import mean_of_group

CARD = Card(
    name="Trajectory balance (FoR)",
    source="arXiv 2406.05673",
    papers=(304,),
    needs=Needs(batch=("group",), signals=("logp", "reward", "group")),
    cost="sampling, then one forward and backward over prompts and samples; one more forward with reference",
    limits=(
        "zero with zero gradient exactly where p is proportional to R on the samples",
        "a constant added to log R, or R times a constant, changes nothing",
        "with reference: the gradient of copg times (n - 1) / n / beta for groups of n",
        "minimised over log Z, the form with a log Z is the log-variance form",
    ),
    differs=(
        "log Z is the mean over the prompt's group, as the released trainer's is over its batch of one prompt; a learned log Z "
        "is offered as a function only",
        "an answer can be written in one way only, so the backward probability is 1",
        "the replay buffer and the local search of the paper are not part of it; rollout.reuse learns several times from a set "
        "of samples, which needs no correction here",
        "rewards are log R unless plain: the paper takes the logarithm of its positive reward",
    ),
    use_when="diverse answers are wanted, each as likely as its reward",
    avoid_when="rewards are 0 or 1 and nearly all 0, or only the best answer counts",
    relatives=("objectives.policy.grpo", "objectives.policy.copg", "objectives.policy.entropy_bonus"),
    mechanism="group policy gradient",
)


def trajectory_balance(logp: Tensor, log_reward: Tensor, log_z: Tensor) -> Tensor:
    """(log Z + log p - log R)^2, (B,), from the log-probability of whole answers and log R, both (B,), in nats."""
    return (log_z + logp - log_reward) ** 2


def log_variance(logp: Tensor, log_reward: Tensor, group: Tensor) -> Tensor:
    """The same with log Z = mean of log R - log p over each group of ids (B,): squared deviations, (B,).

    No gradient passes through the mean; it would be zero.
    """
    return trajectory_balance(logp, log_reward, mean_of_group((log_reward - logp).detach(), group))


def log_reward(reward: Tensor, beta: float, given: Literal["log", "plain"] = "log", floor: float = 1e-3) -> Tensor:
    """log R, (B,): reward / beta, or log max(reward, floor) / beta where plain rewards are given."""
    return (reward if given == "log" else reward.clamp(min=floor).log()) / beta


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TrajectoryBalance(Objective):
    """beta: temperature, log R is divided by it; given: rewards are log R, or R itself; floor: smallest R that is not given as
    a logarithm. reference: answers are to follow R times the reference's probability, not R alone.
    """

    beta: Annotated[float, Gt(0)] = 1.0
    given: Literal["log", "plain"] = "log"
    floor: Annotated[float, Gt(0)] = 1e-3
    reference: bool = False

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        own = self.card.needs
        return replace(own, signals=(*own.signals, "ref_logp")) if self.reference else own

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        logp = s["logp"]
        target = log_reward(s["reward"].to(logp), self.beta, self.given, self.floor)
        if self.reference:
            target = target + s["ref_logp"]
        return Terms(self.name, log_variance(logp, target, s["group"]))
