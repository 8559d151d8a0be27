"""G2: draw answers one after the other and steer each away from the earlier ones, by the same model under two guide prompts.

Paper: arXiv 2511.00432.   Formula: z = z_base + gamma (z_diversity - z_dedupe) where the entropy of the base's next token
exceeds a threshold, else z_base. Both guides show earlier answers: one asks for another, one for the like.
Takes: logits (B, V), those of the same model under the guide prompts.   Gives: (B, V).
Choose it when: several different answers to one prompt are wanted from a model that follows instructions.
Rather not when: one answer is wanted, or the model does not read what it is told: then the guides differ by noise.
Relatives: temperature (all tokens flatter), baco (the base model as the source of variety).

>>> base, other, like = torch.tensor([[1.0, 0.9]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
>>> guide(base, other, like, 0.5, 0.1).argmax(-1).tolist(), guide(base, other, like, 0.5, 9.0).argmax(-1).tolist()
([1], [0])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Decode, DecodeView, component
from luthier.core.errors import Refused, sentence
from luthier.decode.guidance.emulated_ft import log_ratio

CARD = Card(
    name="G2",
    source="arXiv 2511.00432",
    papers=(302,),
    cost="three forward passes per token instead of one; the answers to a prompt are drawn one after the other",
    limits=(
        "gamma = 0, equal guide prompts, or a threshold of log V or more: the base's tokens under the same seed",
        "the first answer to each prompt is that of ordinary sampling",
        "no more earlier answers than centres: all are shown",
    ),
    differs=(
        "the parts were checked against the paper's abstract and a summary; the exact formula, the gate and the prompts "
        "were not at hand: the difference of the guides is that of log-probabilities, and the prompts are in our words",
        "answers are grouped by the words they share, not by sentence embeddings, and farthest first instead of k-means",
    ),
    use_when="you want a set of different answers from an instruction-following model, without training",
    avoid_when="the model does not follow instructions, or answers must be drawn independently",
    relatives=("decode.guidance.baco", "decode.samplers.temperature"),
)

DIVERSITY = "{prompt}\n\nThese answers were given already:\n{answers}\n\nGive an answer that differs from all of them."
DEDUPE = "{prompt}\n\nThese answers were given already:\n{answers}\n\nGive an answer that is like one of them."


def guide(base: Tensor, diversity: Tensor, dedupe: Tensor, gamma: float, threshold: float) -> Tensor:
    """Guided logits (B, V) from those under the three prompts (B, V); threshold in nats of the base's entropy."""
    log_p = base.log_softmax(-1)
    entropy = -torch.where(torch.isneginf(log_p), 0.0, log_p.exp() * log_p).sum(-1, keepdim=True)
    guided = base + gamma * log_ratio(diversity, dedupe) if gamma else base
    return torch.where(entropy > threshold, guided, base)


def centres(answers: Sequence[str], k: int) -> list[int]:
    """At most k answers that stand for all, as ascending indices: one of each group, the nearest to its other members.

    Groups grow around answers that lie farthest from each other; the distance of two is 1 less their share of common words.
    """
    if len(answers) <= k:
        return list(range(len(answers)))
    words = [set(a.lower().split()) for a in answers]
    apart = torch.tensor([[1 - len(a & b) / max(1, len(a | b)) for b in words] for a in words])
    chosen = [int(apart.sum(1).argmin())]
    while len(chosen) < k:
        near = apart[:, chosen].amin(1)
        near[chosen] = -1.0
        chosen.append(int(near.argmax()))
    group = apart[:, chosen].argmin(1)
    group[chosen] = torch.arange(k)
    members = [(group == g).nonzero()[:, 0] for g in range(k)]
    return sorted(int(m[apart[m][:, m].sum(1).argmin()]) for m in members)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class G2(Decode):
    """gamma: strength; threshold: entropy in nats below which the base is left alone; shown: at most so many earlier answers;
    diversity, dedupe: the guide prompts, with {prompt} and {answers}."""

    gamma: Annotated[float, Ge(0)] = 0.5
    threshold: Annotated[float, Ge(0)] = 0.5
    shown: Annotated[int, Gt(0)] = 5
    diversity: str = DIVERSITY
    dedupe: str = DEDUPE

    def __post_init__(self) -> None:
        for name in ("diversity", "dedupe"):
            if "{prompt}" not in (text := getattr(self, name)):
                raise ValueError(f"requires {{prompt}} in `{name}`; got {text!r}")

    def guides(self, prompt: Any, earlier: Sequence[str]) -> Mapping[str, Any]:
        """The two guide prompts; none before the first answer. Of a chat the last turn is rewritten."""
        if not earlier:
            return {}
        answers = "\n".join(f"- {earlier[i]}" for i in centres(earlier, self.shown))

        def told(text: str) -> Any:
            asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            full = text.replace("{answers}", answers).replace("{prompt}", asked)
            return full if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": full}]

        return {"diversity": told(self.diversity), "dedupe": told(self.dedupe)}

    def __call__(self, logits: Tensor, view: DecodeView) -> Tensor:
        found = [name for name in ("diversity", "dedupe") if name in view.helpers]
        if not found:
            return logits
        if len(found) == 1:
            came = f"only {found[0]}"
            raise Refused(sentence("g2", "helpers diversity and dedupe, or neither", came, "Give both guide prompts"))
        return guide(logits, view.helpers["diversity"], view.helpers["dedupe"], self.gamma, self.threshold)
