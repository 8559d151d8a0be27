"""BACo: at every token either the tuned model or its base speaks, by how sure one of them is.

Paper: arXiv 2511.05650.   Formula: p = w p_base + (1 - w) p_tuned, where a router sets w in {0, 1} at each token.
Takes: logits of the tuned model (B, V); those of the model before training as the helper `base`.   Gives: (B, V).
Choose it when: the tuned model says nearly the same each time, and its base still knows other good answers.
Rather not when: the base cannot do the task at all, or two forwards per token are too slow.
Relatives: emulated_ft (adds what tuning changed), temperature (one model, all tokens flatter).

>>> tuned, base = torch.tensor([[9.0, 0.0], [0.1, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
>>> mixture(tuned, base, base_speaks(certainty(tuned), 0.8).double()).argmax(-1).tolist()
[0, 1]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from luthier.core import Card, Decode, DecodeView, Needs, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="BACo",
    source="arXiv 2511.05650",
    papers=(295,),
    needs=Needs(handles=("base",)),
    cost="one forward of the base beside that of the tuned model, per token",
    limits=(
        "base_when uncertain: threshold 0 gives the tuned model's tokens, threshold 1 the base's, under the same seed",
        "base_when certain: the reverse",
        "base equals the tuned model: every threshold gives its tokens",
        "a mixture with w = 1/2 sums to 1",
    ),
    differs=(
        "the mixture was checked against a secondary source; the paper's full text and code were not at hand",
        "which model the uncertainty is read from, and which of them speaks when it is high, is not verified: both are "
        "parameters",
        "entropy is counted as the certainty 1 - entropy / log V, so that every threshold lies in [0, 1]",
        "the content router takes token ids (role_tokens finds them); it looks at the tuned model's likeliest token",
        "the model may change within a word; the paper's switching at word boundaries is not part of it",
    ),
    use_when="answers of the tuned model lack variety and its base is at hand, as it is after every run",
    avoid_when="the base cannot do the task, or latency counts",
    relatives=("decode.guidance.emulated_ft", "decode.samplers.temperature"),
)


def certainty(logits: Tensor, by: Literal["probability", "entropy"] = "probability") -> Tensor:
    """How sure a model is, (B,) in [0, 1]: its largest probability, or 1 - entropy / log V. logits (B, V)."""
    log_p = logits.double().log_softmax(-1)
    if by == "probability":
        return log_p.amax(-1).exp()
    entropy = -torch.where(torch.isneginf(log_p), 0.0, log_p.exp() * log_p).sum(-1)
    return (1 - entropy / math.log(max(2, logits.shape[-1]))).clamp(0, 1)


def base_speaks(sure: Tensor, threshold: float, base_when: Literal["uncertain", "certain"] = "uncertain") -> Tensor:
    """Where the base speaks, (B,) bool: certainty (B,) below the threshold, or not below it. At 1 all lie below."""
    below = (sure < threshold) | (threshold >= 1)
    return below if base_when == "uncertain" else ~below


def mixture(tuned: Tensor, base: Tensor, w: Tensor) -> Tensor:
    """Log-probabilities of w p_base + (1 - w) p_tuned, (B, V), w (B,) in [0, 1]; the logits themselves where w is 0 or 1."""
    share = w.to(tuned.dtype)[:, None]
    mixed = torch.logaddexp(share.log() + base.log_softmax(-1), (1 - share).log() + tuned.log_softmax(-1))
    return torch.where(share == 0, tuned, torch.where(share == 1, base, mixed))


def role_tokens(texts: Sequence[str], words: Collection[str] = ()) -> tuple[int, ...]:
    """Ids of the tokens that are punctuation alone, or one of `words` in any case; texts: of all tokens, by id.

    >>> role_tokens(["the", " The", " cat", ".", " ,", ""], {"the"})
    (0, 1, 3, 4)
    """
    bare = [t.strip().lower() for t in texts]
    return tuple(i for i, t in enumerate(bare) if t and (t in words or not any(c.isalnum() for c in t)))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class BACo(Decode):
    """threshold: certainty below which the base speaks (or from which on, see base_when); router: what certainty is;
    reads: whose; content: ids of tokens that the tuned model always speaks itself; mix: w where the base speaks, 1 is the
    base alone; base: name of the helper model."""

    threshold: Annotated[float, Ge(0), Le(1)] = 0.5
    router: Literal["probability", "entropy"] = "probability"
    reads: Literal["tuned", "base"] = "tuned"
    base_when: Literal["uncertain", "certain"] = "uncertain"
    content: tuple[int, ...] = ()
    mix: Annotated[float, Ge(0), Le(1)] = 1.0
    base: str = "base"

    def __call__(self, logits: Tensor, view: DecodeView) -> Tensor:
        base = view.helpers.get(self.base)
        if base is None:
            came = f"helpers {', '.join(view.helpers) or 'none'}"
            raise Refused(sentence("baco", f"the helper model {self.base}", came, "Name it as one of the `helpers`"))
        if base.shape != logits.shape:
            came = f"{logits.shape[-1]} and {base.shape[-1]} tokens"
            raise Refused(sentence("baco", "models of one vocabulary", came, "Use models of one family"))
        sure = certainty(logits if self.reads == "tuned" else base, self.router)
        speaks = base_speaks(sure, self.threshold, self.base_when)
        if self.content:
            speaks &= ~torch.isin(logits.argmax(-1), torch.tensor(self.content, device=logits.device))
        return mixture(logits, base, self.mix * speaks.to(logits.dtype))
