"""What editors share: the edits as rows, the place in the model, and what an edit leaves behind."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.component import Component
from luthier.core.errors import DataError, NoEffect, nearest, sentence
from luthier.core.protocols import Row
from luthier.models.subject import LanguageSubject


@dataclass
class Edited:
    """An edit that was made in place. before, after: the changed parameters by name; losses: of each step taken."""

    model: nn.Module
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    losses: list[float] = field(default_factory=list[float])

    def undo(self) -> None:
        """The model as it was, bit for bit."""
        _write(self.model, self.before)

    def redo(self) -> None:
        """The edited model again."""
        _write(self.model, self.after)


def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)


class Edit(Component):
    """A component of the edit room: changes a live model in place so that it gives new answers."""

    room: ClassVar[str] = "edit"

    def __call__(self, subject: LanguageSubject, rows: Sequence[Row]) -> Edited:
        """rows: prompt and response (the new answer) each."""
        raise NotImplementedError


def checked(rows: Sequence[Row], who: str) -> tuple[list[Any], list[str]]:
    """(prompts, new answers). Raises DataError for no rows, and for a row without one of them."""
    if not rows:
        raise DataError(sentence(who, "at least one edit", "none", "Give rows with prompt and response"))
    for i, row in enumerate(rows):
        if not row.get("prompt") or not str(row.get("response") or "").strip():
            came = f"row {i} with {', '.join(map(repr, row)) or 'nothing'}"
            raise DataError(sentence(who, "edits with prompt and response (the new answer)", came, "Correct the row"))
    return [r["prompt"] for r in rows], [str(r["response"]) for r in rows]


def place(model: nn.Module, pattern: str, who: str) -> dict[str, nn.Parameter]:
    """Parameters whose name, or whose module's name, fits one of the comma-separated patterns.

    Raises NoEffect for a pattern that fits nothing, with the nearest names.
    """
    named = dict(model.named_parameters())
    found: dict[str, nn.Parameter] = {}
    for one in (p.strip() for p in pattern.split(",") if p.strip()):
        hits = {n: p for n, p in named.items() if any(_fits(end, one) for end in (n, n.rpartition(".")[0]))}
        if not hits:
            near = ", ".join(nearest(one.strip("*."), [n.rpartition(".")[0] for n in named])) or ", ".join(
                list(named)[:3]
            )
            raise NoEffect(f"{who} requires parameters to edit; {one!r} fits 0 of {len(named)}. Nearest names: {near}.")
        found |= hits
    return found


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def counterfact(record: Mapping[str, Any]) -> dict[str, Any]:
    """A CounterFact record in the EasyEdit form as a row for editors and for `edit_success`.

    >>> counterfact({"prompt": "a", "target_new": "b", "rephrase_prompt": "c", "locality_prompt": "d"})["answer"]
    'b'
    """
    try:
        new = record["target_new"]
        return {"prompt": record["prompt"], "response": new, "answer": new, "paraphrase": record["rephrase_prompt"],
                "locality": record["locality_prompt"], "before": record.get("ground_truth")}  # fmt: skip
    except KeyError as fault:
        came = f"none in {', '.join(map(str, record))}"
        raise DataError(sentence("a CounterFact record", f"the field {fault}", came, "Check the file")) from fault
