"""Masked thought: hide random tokens of the answer from the model's eyes, while it still has to predict them all.

Paper: arXiv 2403.02178.   Formula: loss -sum_t log p(y_t | x, m(y_<t)); m hides each token of the answer with probability
min(rate, rate * step / (warmup * steps + 1)).
Takes: text or pairs, in training forwards.   Gives: batches that are read with holes; targets, evaluation, sampling and the
reference stay untouched.
Choose it when: answers are worked in steps, rows are few, and the model leans on the last step instead of the question.
Rather not when: answers are short, or must be copied exactly from what was just written.
Relatives: neftune (noise on embeddings instead of holes).

>>> [round(hide_rate(step, 100, 0.4, 0.5), 2) for step in (0, 25, 51, 99)]
[0.0, 0.2, 0.4, 0.4]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Batch, Card, Context, Hook, Needs, component
from luthier.core.errors import ConfigError, Refused, sentence

CARD = Card(
    name="MFT (masked thought)",
    source="arXiv 2403.02178",
    papers=(148,),
    needs=Needs(batch=("text", "preference", "scored", "feedback", "judged", "set")),
    cost="a few random numbers per row; no forward",
    limits=(
        "rate 0: the loss and gradient of training without it",
        "targets and the loss mask are never changed; with where: response no token of the prompt is",
        "the holes of a row depend on seed, step and row only: any split, padding or packing gives the same",
    ),
    differs=(
        "checked against the authors' code: schedule and rate 0.4, warm-up 0.66 are those of its GSM8K scripts; those for "
        "MATH, MetaMath and MAmmoTH have rate 0.2",
        "the plain GSM8K script puts random words into the holes (by: random), all others a mask token, the default here",
        "no token is added to the vocabulary: the mask is the padding token, or a token named here",
    ),
    use_when="few rows with worked steps are trained for several passes",
    avoid_when="answers are a word or two, or rows are samples of the policy",
    relatives=("regularise.noise.neftune",),
    mechanism="noise injection",
)


def hide_rate(step: int, steps: int, rate: float, warmup: float) -> float:
    """Probability of a hole at a step: rises linearly to `rate` over the share `warmup` of all steps, then stays."""
    return min(rate, rate * step / (warmup * steps + 1))


def places(batch: Batch) -> Tensor:
    """Where token t of each sequence lies in the flattened rows, (sequences, T), -1 past its end; padded or packed."""
    if "home" in batch.inputs:
        return batch.inputs["home"]
    real = batch.inputs["attention_mask"]
    return torch.where(real != 0, torch.arange(real.numel(), device=real.device).view_as(real), -1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class MaskedThought(Hook):
    """rate: largest share of hidden tokens; warmup: share of steps until it is reached; where: which tokens are hidden.

    by: what stands in a hole, the mask token or a random word; token: the mask token, None for the padding token.
    """

    points: ClassVar[tuple[str, ...]] = ("batch",)
    may_idle: ClassVar[bool] = True
    rate: Annotated[float, Ge(0), Le(1)] = 0.4
    warmup: Annotated[float, Gt(0), Le(1)] = 0.66
    where: Literal["response", "prompt"] = "response"
    by: Literal["mask", "random"] = "mask"
    token: str | None = None

    def batch(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with `read_ids`, what the model reads in place of input_ids."""
        if batch.kind == "group":
            came = "samples of the policy, whose log-probs belong to the text as it was read"
            raise Refused(sentence(self.id, "texts to imitate", came, "Use it with nll, or leave it out"))
        tokenizer, rate = self._tokenizer(ctx), hide_rate(ctx.step, ctx.steps, self.rate, self.warmup)
        mask = self._filling(tokenizer) if self.by == "mask" else 0
        if rate == 0:
            return batch
        read = batch.inputs["input_ids"].flatten().clone()
        trained = batch.inputs["loss_mask"].flatten() != 0
        for i, home in enumerate(places(batch)):
            own = home[home >= 0][1:]
            own = own[trained[own] if self.where == "response" else ~trained[own]]
            part, row = divmod(i, len(batch))
            name = batch.rows[row] if batch.rows else row
            g = ctx.generator(f"regularise.noise.masked_thought/{name}/{part}")
            holes = own[(torch.rand(len(own), generator=g) < rate).to(own.device)]
            words = torch.randint(len(tokenizer), (len(holes),), generator=g).to(read.device)
            read[holes] = mask if self.by == "mask" else words
            ctx.note(len(holes))
        return batch.with_inputs(read_ids=read.view_as(batch.inputs["input_ids"]))

    def _tokenizer(self, ctx: Context) -> Any:
        if "tokenizer" not in ctx.handles:
            raise Refused(sentence(self.id, "the tokenizer among the handles", f"{sorted(ctx.handles) or 'none'}",
                                   "Run it from a recipe, or give the job handles={'tokenizer': ...}"))  # fmt: skip
        return ctx.handles["tokenizer"]

    def _filling(self, tokenizer: Any) -> int:
        """The mask token's id. Raises ConfigError where there is none."""
        found = tokenizer.pad_token_id if self.token is None else tokenizer.convert_tokens_to_ids(self.token)
        unknown = found == getattr(tokenizer, "unk_token_id", None) and self.token != getattr(
            tokenizer, "unk_token", None
        )
        if found is None or (unknown and self.token is not None):
            came = "no padding token" if self.token is None else f"{self.token!r}, which is no token of this model"
            raise ConfigError(sentence(f"{self.id}.token", "a token of the vocabulary", came, "Name one that it has"))
        return int(found)
