"""trl #4719, #6006, #6478, #6439: normalisation by tokens kept breaking, trainer by trainer.

Every objective of the registry that runs on plain rows gives the same first step in one piece and row by row.
"""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.core.registry import entries
from luthier.recipes.recipe import recipe_faults
from tests.pains.parts import plain, trained

SUMS = [e.short for e in entries().values() if e.room == "objectives" and not e.card.needs.handles
        and set(e.card.needs.batch) <= {"text", "preference"} and e.card.needs.batch]  # fmt: skip
RAN: list[str] = []


@pytest.mark.parametrize("name", SUMS)
def test_one_piece_and_row_by_row_give_the_same_step(place, name):
    kind = next(e for e in entries().values() if e.short == name).card.needs.batch
    rows = "chat" if "text" in kind else "pairs"
    if recipe_faults(plain(place, rows, objective=name)):
        pytest.skip("needs parameters or parts that a plain recipe does not name")
    try:
        whole, split = (
            trained(place, rows, objective=name, train={"steps": 1, "micro": micro}).outcome.curves[0]
            for micro in (None, 1)
        )
    except LuthierError as fault:
        pytest.skip(f"needs other rows: {fault}")
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-6)
    assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3, abs=1e-6)
    RAN.append(name)


def test_most_objectives_were_really_tried():
    assert len(RAN) >= 0.6 * len(SUMS), RAN
    assert len(RAN) >= 5
