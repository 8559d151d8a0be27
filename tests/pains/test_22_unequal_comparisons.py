"""pyreft #42, DoRA #3: comparisons of papers differ in epochs and code base, so their results cannot be compared."""

from __future__ import annotations

from luthier.compare.arms import run_arm
from luthier.compare.summary import compare
from luthier.report.html import settings
from tests.pains.parts import plain


def test_every_setting_in_which_arms_differ_is_listed_with_both_values(place):
    a = plain(place, adapt={"lora": {"rank": 2}}, train={"epochs": 1, "steps": None}, measure=["likelihood"])
    b = plain(place, adapt={"lora": {"rank": 4}}, train={"epochs": 3, "steps": None}, measure=["likelihood"])
    for one in (a, b):
        one["data"]["holdout"] = 4
        del one["train"]["steps"]
    made = compare([run_arm("a", a, 0), run_arm("b", b, 0)], ["a", "b"], [0])
    differing = {s.key: s.cells for s in settings(made) if s.differs}
    assert {k.split(".")[-1]: v for k, v in differing.items()} == {"epochs": ("1.0", "3.0"), "rank": ("2", "4")}


def test_the_arms_of_a_seed_see_the_same_rows_in_the_same_order(place):
    from luthier.recipes.build import prepare
    from luthier.recipes.recipe import parse

    arms = [prepare(parse(plain(place, adapt=adapt, objective=o))) for adapt, o in (("full", "nll"), ("lora", "dft"))]
    for step in range(6):
        first, second = ([b.rows for b in arm.feed.micros(step)] for arm in arms)
        assert first == second
