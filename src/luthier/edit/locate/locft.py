"""Localised fine-tuning, breadth first: edit facts by ordinary training of one matrix over all edits, epoch after epoch.

Paper: arXiv 2509.22072 (LocFT-BF).
Formula: min over the parameters at one place of the mean over edits of -1/|y| sum_t log p(y_t | x, y_<t), by Adam over shuffled
mini-batches of all edits; depth first, the older way, brings one edit after another to convergence instead.
Takes: a live model and edits (prompt, response), the end token included.   Gives: the model edited in place, and the way back.
Choose it when: many facts change at once.   Rather not when: edits come one by one and the old ones are gone.
Relatives: nll with the adaptation `full` at the same sites (the same training in a recipe: `adapt: {full: {sites: PLACE}}`,
`objective: {nll: {per: sequence}}`, without `stop`); edit_success (judges it).

>>> orders(3, epochs=2, batch=2, order="depth", seed=0)
[[[0]], [[0]], [[1]], [[1]], [[2]], [[2]]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Needs, Row, component
from luthier.core.streams import stream
from luthier.edit._edit import Edit, Edited, checked, place
from luthier.models.collate import pad
from luthier.models.subject import LanguageSubject

CARD = Card(
    name="LocFT-BF",
    source="arXiv 2509.22072",
    papers=(34,),
    needs=Needs(batch=("text",)),
    cost="one forward and backward over a mini-batch of edits per step; memory for one copy of the edited matrices",
    limits=(
        "every parameter outside of the place is untouched, bit for bit",
        "one edit and batch 1: breadth first and depth first take the same steps",
        "undo gives the model back bit for bit",
        "lr = 0 changes nothing",
    ),
    differs=(
        "loss, mask with end token, Adam, shuffling, the skipping of batches below `stop` and the end of training below it as in "
        "the authors' fine-tune.py, read; rates and places there are for models of 7 billion parameters (down_proj of block "
        "22 of 32, lr 5e-4, batch 100, 25 epochs)",
        "depth first starts a new Adam for each edit, as running the authors' code once per edit does",
        "what is new beside ordinary tuning is only the order of rows and the place: the recipe named above trains the same",
    ),
    use_when="a batch of facts must change and plain tuning of all weights costs too much of the rest",
    avoid_when="only one edit is known at a time",
    relatives=("measure.quality.edit_success", "adapt.full", "objectives.supervised.nll"),
    mechanism="localised training",
)
Order = Literal["breadth", "depth"]


def orders(n: int, epochs: int, batch: int, order: Order, seed: int) -> list[list[list[int]]]:
    """Passes of mini-batches of edits: one pass per epoch over all edits (breadth), or `epochs` per edit in turn (depth)."""
    if order == "depth":
        return [[[i]] for i in range(n) for _ in range(epochs)]
    made = []
    for epoch in range(epochs):
        mixed = torch.randperm(n, generator=stream(seed, "edit.locft", epoch)).tolist()
        made.append([mixed[at : at + batch] for at in range(0, n, batch)])
    return made


def edit_loss(logp: Tensor, mask: Tensor) -> Tensor:
    """Mean over edits of the mean negative log-prob per answer token: (n, T) each -> a scalar."""
    return -((logp * mask).sum(-1) / mask.sum(-1)).mean()


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LocFT(Edit):
    """sites: patterns of parameters or modules to train; epochs: passes over the edits (depth: steps per edit, at most).

    stop: a batch whose loss is below it is skipped, and training of the edits (depth: of this edit) ends when a pass is.
    """

    sites: str
    epochs: Annotated[int, Ge(1)] = 25
    batch: Annotated[int, Ge(1)] = 100
    lr: Annotated[float, Ge(0)] = 5e-4
    order: Literal["breadth", "depth"] = "breadth"
    stop: Annotated[float, Ge(0)] = 1e-2
    seed: int = 0
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def __call__(self, subject: LanguageSubject, rows: Sequence[Row]) -> Edited:
        """Edit `subject`'s model in place; its remembered answers are forgotten. Raises DataError, NoEffect."""
        model = subject.module.model
        at = place(model, self.sites, self.id)
        tokens = subject.pairs(*checked(rows, self.id))
        before = {n: p.detach().clone() for n, p in at.items()}
        flags = {p: p.requires_grad for p in model.parameters()}
        training, losses = model.training, list[float]()
        try:
            model.eval()
            for p in flags:
                p.requires_grad_(False)
            for p in at.values():
                p.requires_grad_(True)
            self._train(subject, tokens, list(at.values()), losses)
        finally:
            for p, flag in flags.items():
                p.requires_grad_(flag)
                p.grad = None
            model.train(training)
        subject.forget()
        return Edited(model, before, {n: p.detach().clone() for n, p in at.items()}, losses)

    def _train(
        self, subject: LanguageSubject, tokens: Sequence[Any], trained: Sequence[Tensor], losses: list[float]
    ) -> None:
        device, pad_id = trained[0].device, subject.tokenizer.pad_token_id or 0
        search, edit, finished = self._adam(trained), 0, False
        for number, batches in enumerate(orders(len(tokens), self.epochs, self.batch, self.order, self.seed)):
            if self.order == "depth" and number // self.epochs != edit:
                search, edit, finished = self._adam(trained), number // self.epochs, False
            if finished:
                continue
            total = 0.0
            for rows in batches:
                inputs = {k: v.to(device) for k, v in pad([tokens[i] for i in rows], pad_id).items()}
                got = subject.module(
                    inputs["input_ids"], ("token_logp",), inputs["loss_mask"], inputs["attention_mask"]
                )
                loss = edit_loss(got["token_logp"], inputs["loss_mask"])
                losses.append(float(loss.detach()))
                total += losses[-1] * len(rows)
                if losses[-1] >= self.stop:
                    search.zero_grad()
                    loss.backward()
                    search.step()
            finished = total / sum(map(len, batches)) < self.stop

    def _adam(self, trained: Sequence[Tensor]) -> Any:
        return torch.optim.Adam(trained, lr=self.lr, weight_decay=self.weight_decay)
