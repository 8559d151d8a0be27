"""Textual inversion: teaches one new word to an image model, and nothing else: only the vector of that word trains.

Paper: arXiv 2208.01618.   Formula: v* = argmin_v of the objective, with captions in which the new word has the vector v.
Takes: a model that is conditioned on captions, captions that hold the word.   Gives: one vector, merged exactly as a new row of
the table of words.   Choose it when: a subject or style is to be named in a few images and the model must stay as it is.
Rather not when: the subject is far from all that the model can draw: let a LoRA learn beside it (both in `adapt`).
Relatives: dreambooth, dco (what is learned), lora, tlora (what trains beside).

>>> word_vectors(torch.tensor([[3, 7]]), torch.zeros(1, 2, 4), 7, torch.ones(4))[0, :, 0].tolist()
[0.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from luthier.adapt._handle import WornHandle
from luthier.adapt._surgery import Ledger, Switch, Worn, close_if_idle, parts, wear
from luthier.core import Adaptation, Card, Needs, Site, Sites, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="textual inversion",
    source="arXiv 2208.01618",
    needs=Needs(batch=("image", "image_preference", "image_prompts")),
    cost="one vector; forward and backward through the text encoder and the network",
    limits=(
        "at the start the new word means what `like` does",
        "no other tensor has a gradient, and no other caption changes",
        "the gradient is the sum over the word's places of the gradient of the table's output",
    ),
    differs=(
        "captions are the user's; the paper fills templates such as 'a photo of X'",
        "one vector, as the paper's main setting; diffusers' script trains the same row by undoing all others after each step",
        "for the reference the word means what `like` does",
    ),
    use_when="a subject or style is to be named from a few images",
    avoid_when="the subject is far from all that the model can draw",
    relatives=("diffusion.personalise.dreambooth", "diffusion.personalise.dco", "adapt.lowrank.tlora"),
    mechanism="representation edit",
)


def word_vectors(ids: Tensor, rows: Tensor, word: int, vector: Tensor) -> Tensor:
    """Rows of the table (..., d) for ids (...), with `vector` (d,) wherever the word stands."""
    return torch.where((ids == word)[..., None], vector.to(rows.dtype), rows)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TextualInversion(Adaptation):
    """word: the new one, as it stands in captions; like: the known word that it begins as."""

    word: Annotated[str, MinLen(1)] = "<new>"
    like: Annotated[str, MinLen(1)] = "object"
    sites: ClassVar[Sites] = Sites("", ("embedding",))

    def attach(self, model: nn.Module, sites: Sites, seed: int) -> WordHandle:
        """Add the word to the model's conditioner and wear its vector on the table. Raises ModelError, Refused."""
        conditioner: Any = getattr(model, "conditioner", None)
        if conditioner is None:
            raise Refused(sentence(self.id, "an image model that is conditioned on captions", type(model).__name__,
                                   "Use it in a recipe of the room diffusion"))  # fmt: skip
        where, row = conditioner.add_word(self.word, self.like)
        name = f"conditioner.{where}"
        try:
            Ledger.of(model).refuse_overlap(self.id, [name])
            table: Any = model.get_submodule(name)
            wear(table, Worn(self, Switch(), False), {"vector": table.weight[row].detach().clone()}, None, name)
            table.word = row
            switch: Switch = table.__dict__["_luthier_worn"].switch
            return WordHandle(self, model, [Site(name, "embedding", shape=tuple(table.weight.shape))], switch)._enter()
        except BaseException:
            conditioner.drop_word()
            close_if_idle(model)
            raise

    def run(self, module: Any, forward: Callable[..., Tensor], x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """The table's own rows, and the vector where the word stands."""
        return word_vectors(x, forward(x, *rest, **named), module.word, parts(module)["vector"])


class WordHandle(WornHandle):
    """A live new word."""

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The table with the learned row."""
        self._can_merge()
        ((name, module),) = self.modules.items()
        table: Any = module
        weight = table.weight.detach().clone()
        weight[table.word] = parts(module)["vector"].detach().to(weight.dtype)
        return {f"{name}.weight": weight}

    def detach(self) -> None:
        """Forget the word; the table is the one from before."""
        if self.live:
            super().detach()
            conditioner: Any = self.model.conditioner
            conditioner.drop_word()

    def merge_into_model(self) -> None:
        """Write the row and keep the word."""
        new = self.merged()
        super().detach()
        for name, value in new.items():
            self.model.get_parameter(name).data.copy_(value)
