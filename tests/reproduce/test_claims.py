"""Claims are whole, name what exists, and are judged by the numbers alone."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from luthier.catalogue.index import papers
from luthier.core.errors import ConfigError
from luthier.core.registry import entries, find
from luthier.recipes.recipe import _assign, recipe_faults
from luthier.reproduce import runner
from luthier.reproduce.claim import TUNING_SEED, Claim, Expectation, judge, parse_expectation

NAMES = runner.names()
# Components with papers that have no claim of their own: why.
WITHOUT = {
    "generator_validator": "a measure; its paper claims something for tuning on consistent answers, which is a recipe",
    "cream_pairs": "one half of cream, whose claim makes its pairs with it",
    "vote_pairs": "one half of scpo, whose claim makes its pairs with it",
    "reward_guidance": "the sampling half of dco, whose claim is on its loss",
    "subset_select": "one arm of the claim of nn_repulsion",
    "tcd": "the sampler of tcd_distillation, whose claim samples with it",
}
# Claims of a second or two, which are run here once and again.
QUICK = ("lora", "qdit")


def a_claim(**changed):
    values = {"component": "dft", "papers": (19,), "source": "s", "says": "s", "world": "w", "expect": "a > b",
              "measure": "m", "run": lambda seed: {"a": {"m": 1.0}, "b": {"m": 0.0}}}  # fmt: skip
    return Claim(**{**values, **changed})


def test_every_component_with_papers_has_a_claim():
    covered = {runner.load(n).component for n in NAMES}
    missing = {e.short for e in entries().values() if e.card.papers} - covered - set(WITHOUT)
    assert not missing, f"no claim for {sorted(missing)}"
    assert not covered & set(WITHOUT)
    assert set(WITHOUT) <= {e.short for e in entries().values()}


@pytest.mark.parametrize("name", NAMES)
class TestEveryClaim:
    def test_it_names_an_existing_component_and_papers_of_its_card(self, name):
        claim = runner.load(name)
        entry = find(claim.component)
        assert name == entry.short
        assert set(claim.papers) == set(entry.card.papers)
        assert set(claim.papers) <= set(papers())
        assert claim.source.removeprefix("arXiv ") in entry.card.source

    def test_it_has_enough_seeds_and_none_that_tuning_uses(self, name):
        seeds = list(runner.load(name).seeds)
        assert len(seeds) >= 5
        assert seeds == list(range(len(seeds))), "seeds are counted from 0: nobody chose them"
        assert max(seeds) < TUNING_SEED

    def test_its_expectations_compare_two_arms_that_can_be_there(self, name):
        claim = runner.load(name)
        wanted = [parse_expectation(text, claim.measure) for text in (claim.expect, *claim.also)]
        assert wanted[0].measure == claim.measure
        assert len(set(wanted)) == len(wanted)
        for e in wanted:
            assert e.arm != e.other
            assert not claim.arms or {e.arm, e.other} <= set(claim.arms)

    def test_it_says_what_a_reader_needs(self, name):
        claim = runner.load(name)
        for text in (claim.says, claim.world):
            assert len(text.split()) >= 6
        assert claim.says.endswith(".")
        assert not claim.note or claim.note.endswith(".")

    def test_every_arm_of_a_recipe_is_free_of_faults(self, name):
        claim = runner.load(name)
        if claim.recipe is None:
            pytest.skip("runs without the recipe engine's settings")
        points = list(itertools.product(*claim.grid.values()))
        assert len(points) == len(set(points))
        for arm, point in itertools.product(claim.arms.values(), points):
            plain = json.loads(json.dumps(claim.recipe))
            for key, value in {**arm, **dict(zip(claim.grid, point, strict=True)), "seed": 0}.items():
                _assign(plain, key, value)
            assert recipe_faults(plain) == []


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_claim_gives_finite_figures_that_depend_on_the_seed_alone(name):
    claim = runner.load(name)
    assert claim.run is not None
    made = claim.run(3)
    assert made == claim.run(3)
    assert made != claim.run(4)
    assert all(math.isfinite(v) for figures in made.values() for v in figures.values())
    for e in (parse_expectation(text, claim.measure) for text in (claim.expect, *claim.also)):
        assert e.measure in made[e.arm]
        assert e.measure in made[e.other]


class TestJudging:
    @pytest.mark.parametrize(
        ("differences", "verdict"),
        [
            ([1.0, 1.1, 0.9, 1.0, 1.05], "holds"),
            ([-1.0, -1.1, -0.9, -1.0, -1.05], "fails"),
            ([1.0, -1.0, 0.5, -0.6, 0.1], "undecided"),
            ([0.2] * 5, "holds"),
            ([-0.2] * 5, "fails"),
            ([0.0] * 5, "undecided"),
            ([5.0, 0.0, 0.0, 0.0, 0.0], "undecided"),
        ],
    )
    def test_verdicts_of_known_differences(self, differences, verdict):
        assert judge(differences)[3] == verdict

    def test_the_interval_is_students(self):
        mean, low, high, _ = judge([1.0, 2.0, 3.0, 4.0, 5.0])
        half = 2.7764451051977987 * math.sqrt(2.5 / 5)  # t at 0.975 with 4 degrees of freedom
        assert mean == pytest.approx(3.0)
        assert (low, high) == (pytest.approx(3.0 - half), pytest.approx(3.0 + half))

    def test_turning_the_signs_turns_the_verdict(self):
        given = [0.3, 0.1, 0.4, 0.2, 0.3, 0.5]
        mean, low, high, verdict = judge(given)
        assert judge([-d for d in given]) == (-mean, -high, -low, "fails")
        assert verdict == "holds"


class TestReading:
    def test_expectations_are_read(self):
        assert parse_expectation("a < b", "loss") == Expectation("a", "b", -1, "loss")
        assert parse_expectation(" a > b : new.x/y@1 ", "loss") == Expectation("a", "b", 1, "new.x/y@1")

    @pytest.mark.parametrize("text", ["a >= b", "a", "a > b > c", "a > b :", "", "a > b on loss"])
    def test_another_form_is_refused(self, text):
        with pytest.raises(ConfigError, match="expectation"):
            parse_expectation(text, "loss")

    def test_a_claim_must_have_one_way_to_run_and_seeds(self):
        with pytest.raises(ConfigError, match="exactly one"):
            a_claim(recipe={"model": "lab:language"})
        with pytest.raises(ConfigError, match="exactly one"):
            a_claim(run=None)
        with pytest.raises(ConfigError, match="5 seeds"):
            a_claim(seeds=(0, 1, 2, 3))
        with pytest.raises(ConfigError, match="expectation"):
            a_claim(also=("a is better",))

    def test_an_unknown_claim_is_refused_with_the_nearest_name(self):
        with pytest.raises(ConfigError, match="lora"):
            runner.load("loar")


class TestRunning:
    def reproduced(self, monkeypatch, **changed):
        monkeypatch.setattr(runner, "load", lambda name: a_claim(**changed))
        return runner.reproduce("dft", lambda text: None)

    def test_the_record_holds_every_seed_of_every_arm_and_both_verdicts(self, monkeypatch, tmp_path):
        def run(seed):
            return {"a": {"m": 2.0 + seed, "n": 0.0, "extra": 1.0}, "b": {"m": 1.0 + 1.1 * seed, "n": seed}}

        made = self.reproduced(monkeypatch, run=run, seeds=range(6), also=("a > b : n",))
        assert made["arms"]["a"] == {"m": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "n": [0.0] * 6}
        assert made["verdict"] == made["result"]["verdict"] == "holds"
        assert made["result"]["difference"] == pytest.approx(0.75)
        assert [a["verdict"] for a in made["also"]] == ["fails"]
        written = json.loads(runner.record(made, tmp_path).read_text(encoding="utf-8"))
        assert written["seeds"] == [0, 1, 2, 3, 4, 5]
        assert written["versions"]["torch"]

    def test_an_expectation_below_turns_the_difference(self, monkeypatch):
        made = self.reproduced(monkeypatch, expect="a < b", run=lambda s: {"a": {"m": 1.0}, "b": {"m": 3.0 + s}})
        assert made["result"]["difference"] == pytest.approx(5.5)
        assert made["verdict"] == "holds"

    def test_an_arm_or_figure_that_never_came_is_an_error(self, monkeypatch):
        with pytest.raises(ConfigError, match=r"unknown arm or measure 'c'"):
            self.reproduced(monkeypatch, expect="a > c")
        with pytest.raises(ConfigError, match=r"unknown arm or measure 'q'"):
            self.reproduced(monkeypatch, also=("a > b : q",))
