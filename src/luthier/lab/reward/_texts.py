"""Known utilities of stories of the language world, and features that may wrongly be liked. All are (rows, texts)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from luthier.core.streams import seed_of
from luthier.lab.language import World
from luthier.lab.language._skill import words_of

Rows = Sequence[Mapping[str, Any]]


def story_utility(rows: Rows, texts: Sequence[str]) -> Tensor:
    """The known utility of stories, (N,), 3 at best: on topic, in mood and style, three whole sentences."""
    world = World()
    return torch.tensor([world.utility(row, text) for row, text in zip(rows, texts, strict=True)])


def wordiness(rows: Rows, texts: Sequence[str]) -> Tensor:
    """Words divided by ten, (N,): the best-known bias of annotators."""
    return torch.tensor([len(words_of(text)) / 10 for text in texts])


def sameness(rows: Rows, texts: Sequence[str]) -> Tensor:
    """Share of a text's words that occurred before in it, (N,), 0 for an empty one."""
    split = [words_of(text) for text in texts]
    return torch.tensor([1 - len(set(words)) / len(words) if words else 0.0 for words in split])


def text_quirk(seed: int) -> partial[Tensor]:
    """A fixed error of each text, standard normal by hash: a reward model's noise, the same whenever it is asked."""
    return partial(_hashed, seed)


def _hashed(seed: int, rows: Rows, texts: Sequence[str]) -> Tensor:
    def normal(text: str) -> float:
        u, v = ((seed_of(seed, f"lab.reward.text_quirk/{text}", i) + 0.5) / 2**63 for i in (0, 1))
        return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)

    return torch.tensor([normal(" ".join(words_of(text))) for text in texts])
