"""What makers of rows share: samplers as handles, a plain text form of examples, and figures of what was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.core.component import Component
from luthier.core.errors import DataError, sentence
from luthier.core.protocols import Row, Subject
from luthier.core.streams import python_stream
from luthier.ops.distances import mean_pairwise

Sampler = Callable[[Sequence[str]], Sequence[str]]
Judge = Callable[[Sequence[Row]], int]
BEGIN, QUESTION, ANSWER, END = "Example:", "Question:", "Answer:", "End of example"


@dataclass(frozen=True)
class Made:
    """Rows (prompt, response) that were made, the draft of each, and how many were lost at each stage."""

    rows: tuple[Row, ...]
    drafts: tuple[Row, ...]
    lost: Mapping[str, int]


class Synthesise(Component):
    """A component of the data room that makes rows from a few examples."""

    room: ClassVar[str] = "data"

    def __call__(self, examples: Sequence[Row], n: int, **samplers: Sampler) -> Made:
        raise NotImplementedError


def sampler(subject: Subject, temperature: float, max_new: int, role: str) -> Sampler:
    """One sample for each prompt by a model as measures see it; `role` names the random numbers."""

    def sample(prompts: Sequence[str]) -> Sequence[str]:
        made = subject.generate(prompts, samples=1, temperature=temperature, max_new=max_new, role=role)
        return [one for (one,) in made]

    return sample


def checked(examples: Sequence[Row], who: str) -> None:
    """Raise DataError for no examples, and for one without prompt and response as texts."""
    if not examples:
        raise DataError(sentence(who, "at least one example", "none", "Give rows with prompt and response"))
    for i, row in enumerate(examples):
        if not all(isinstance(row.get(k), str) and row[k].strip() for k in ("prompt", "response")):
            came = f"row {i + 1} with {', '.join(map(str, row)) or 'no columns'}"
            raise DataError(sentence(who, "examples with prompt and response as texts", came, "Map their columns"))


def written(row: Row) -> str:
    """An example as text.

    >>> written({"prompt": "1 + 1", "response": "2"})
    'Question: 1 + 1\\nAnswer: 2'
    """
    return f"{QUESTION} {row['prompt']}\n{ANSWER} {row['response']}"


def read(text: str) -> dict[str, Any] | None:
    """The first example in a text as `written` writes it, up to the end mark; None where it is not whole."""
    body = text.split(END, 1)[0].split(QUESTION, 1)[-1]
    prompt, mark, response = body.partition(ANSWER)
    row = {"prompt": prompt.strip(), "response": response.split(QUESTION, 1)[0].strip()}
    return row if mark and row["prompt"] and row["response"] else None


def similarity(vectors: Tensor) -> Tensor:
    """Mean cosine over pairs of different items (n, d), a scalar: 1 for copies; needs two items."""
    return 1 - mean_pairwise(vectors.double(), "cosine")


def indistinguishable(made: Sequence[Row], real: Sequence[Row], judge: Judge, shown: int = 4, seed: int = 0) -> float:
    """Share of made rows that a judge does not find among real ones; 1 - 1 / shown is what guessing gives.

    judge: of `shown` rows, one of which was made, gives the place of the one it takes for made. Raises DataError for no
    rows, or fewer than shown - 1 real ones.
    """
    if not made or shown < 2 or len(real) < shown - 1:
        came = f"{len(made)} made and {len(real)} real rows, {shown} shown"
        raise DataError(sentence("indistinguishable", "made rows and enough real ones", came, "Give more rows"))
    rng, missed = python_stream(seed, "data.synthesise.judge"), []
    for row in made:
        others, place = rng.sample(list(real), shown - 1), rng.randrange(shown)
        missed.append(judge([*others[:place], row, *others[place:]]) != place)
    return float(torch.tensor(missed, dtype=torch.float64).mean())
