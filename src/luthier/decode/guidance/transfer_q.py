"""Transfer Q*: choose each token by the reward that an already aligned model would go on to earn after it.

Paper: arXiv 2405.20495.   Formula: p(z | s) proportional to p_sft(z | s) exp(Q(s, z) / alpha), where Q is the mean reward of
roll-outs of an aligned baseline from s + z. Indirect: the baseline was aligned to another reward r_b at KL price beta; then
roll-outs count in proportion to exp((r - r_b) / beta).
Takes: logits (B, V); roll-outs of the helper `baseline`; a reward.   Gives: (B, V), only the top tokens possible.
Choose it when: a reward scores whole answers, and a model aligned to it or to a like one is at hand.
Rather not when: latency counts: each token costs top x rollouts completions.
Relatives: emulated_ft (adds an aligned model's logits, no reward), raft (trains on what the reward prefers).

>>> value(torch.tensor([[0.0, 1.0]])).tolist()
[0.5]
>>> guided(torch.zeros(1, 3), torch.tensor([[0, 2]]), torch.tensor([[0.0, 9.0]]), 1.0).argmax(-1).tolist()
[2]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Decode, DecodeView, Needs, Reward, component
from luthier.core.errors import Refused, sentence
from luthier.core.streams import stream

CARD = Card(
    name="Transfer Q*",
    source="arXiv 2405.20495",
    papers=(237,),
    needs=Needs(handles=("baseline",)),
    cost="top x rollouts completions by the baseline per token, and one forward of it",
    limits=(
        "exact expectations under a reward-optimal baseline: softmax(log p_sft + Q* / alpha)",
        "indirect with both rewards equal: all roll-outs count alike",
        "indirect, exact, from the optimum for r_b at price beta: the value under the optimum for r at that price",
        "alpha to infinity: the SFT distribution",
        "the baseline is the SFT model: controlled decoding with roll-outs",
    ),
    differs=(
        "the decision rule and what the baseline is for were checked against the paper's abstract; the weights of the indirect "
        "form follow from the closed form of the two optima and were not compared with the paper's own estimator",
        "random numbers of roll-outs are common to all tokens of a step, so that tokens are compared in pairs; they depend on the "
        "step alone, not on prompt or seed, so that the guided model is one fixed distribution",
        "tokens outside the top are impossible",
    ),
    use_when="answers are scored as a whole by a reward and you cannot tune for it, but have a model aligned to a like one",
    avoid_when="latency counts, or the reward needs the right answer",
    relatives=("decode.guidance.emulated_ft",),
)


def value(reward: Tensor, other: Tensor | None = None, beta: float = 1.0, log_p: Tensor | None = None) -> Tensor:
    """Estimated value (...,) from rewards (..., n) of n roll-outs; other: their rewards under r_b (indirect transfer).

    log_p: log-probabilities of the roll-outs where they are enumerated instead of drawn; they may leave out a constant.
    """
    weight = torch.zeros_like(reward) if log_p is None else log_p
    if other is not None:
        weight = weight + (reward - other) / beta
    return (weight.softmax(-1) * reward).sum(-1)


def guided(logits: Tensor, tokens: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Unnormalised log-probabilities (B, V): logits + q / alpha at `tokens` (B, K) with values q (B, K), else -inf."""
    out = torch.full_like(logits, -torch.inf)
    return out.scatter(-1, tokens, logits.gather(-1, tokens) + q.to(logits) / alpha)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TransferQ(Decode):
    """reward: what answers are to earn; alpha: how far from the model (large: not at all); top: likeliest tokens tried;
    rollouts: completions of each; length: of an answer in tokens, what is drawn already included; aligned_to: the reward that
    the baseline was aligned to, if another; beta: at which KL price; baseline: name of the helper model."""

    reward: Reward
    alpha: Annotated[float, Gt(0)] = 1.0
    top: Annotated[int, Gt(0)] = 8
    rollouts: Annotated[int, Gt(0)] = 4
    length: Annotated[int, Ge(1)] = 64
    aligned_to: Reward | None = None
    beta: Annotated[float, Gt(0)] = 0.1
    baseline: str = "baseline"

    def __call__(self, logits: Tensor, view: DecodeView) -> Tensor:
        if self.baseline not in view.helpers or view.roll is None or view.text is None:
            came = f"helpers {', '.join(view.helpers) or 'none'}" + (
                ", no way to roll out or read" if view.text is None else ""
            )
            do = "Name it as one of the `helpers`, and give `text`"
            raise Refused(sentence("transfer_q", f"the helper model {self.baseline} inside generation", came, do))
        tokens = logits.topk(min(self.top, logits.shape[-1]), -1).indices
        rows, whole = self._rollouts(view, tokens)
        shape = (*tokens.shape, self.rollouts)
        reward = self.reward(rows, whole).to(logits.device).double().view(shape)
        other = None if self.aligned_to is None else self.aligned_to(rows, whole).to(reward).view(shape)
        return guided(logits, tokens, value(reward, other, self.beta), self.alpha)

    def _rollouts(self, view: DecodeView, tokens: Tensor) -> tuple[list[dict[str, Any]], list[str]]:
        """(row, text of the whole answer) of each roll-out, in the order (row, token, roll-out)."""
        assert view.roll is not None and view.text is not None
        left = max(0, self.length - view.step - 1)
        common = torch.rand(self.rollouts, left, generator=stream(0, "transfer_q", view.step))
        known = [ids[on.bool()].tolist() for ids, on in zip(view.tokens, view.mask, strict=True)]
        tries: list[tuple[int, list[int]]] = [
            (b, [*known[b], z]) for b, row in enumerate(tokens.tolist()) for z in row for _ in range(self.rollouts)
        ]
        open_ = [i for i, (_, ids) in enumerate(tries) if ids[-1] not in view.stop]
        more: list[Sequence[int]] = [[] for _ in tries]
        if open_:
            uniform = common[[i % self.rollouts for i in open_]]
            made = view.roll(self.baseline, [tries[i][1] for i in open_], uniform)
            for i, ids in zip(open_, made, strict=True):
                more[i] = ids
        start = [len(ids) - view.step for ids in known]
        prompts = [{"prompt": view.text(ids[:at])} for ids, at in zip(known, start, strict=True)]
        whole = [view.text([*ids[start[b] :], *end]) for (b, ids), end in zip(tries, more, strict=True)]
        return [prompts[b] for b, _ in tries], whole
