"""conjugate_probe: all eight cases of a row, the identity, a language that tuning forgot, and the regression world."""

from __future__ import annotations

import itertools

import pytest
import torch

from luthier.core import MeasureContext, stream
from luthier.core.errors import DataError
from luthier.lab.micro.in_context import InContextWorld
from luthier.measure.diagnose.conjugate_probe import ConjugateProbe, conjugated, fate
from tests.measure.fakes import Fake
from tests.tolerance import same


def test_fates_of_a_row():
    for before, after, through in itertools.product((False, True), repeat=3):
        found = fate(before, after, through)
        assert found.lost == (before and not after)
        assert found.suppressed + found.erased == found.lost
        assert found.suppressed == (before and not after and through)


def test_the_identity_is_plain_evaluation():
    world = InContextWorld.random(3, 2, seed=0)
    x, y = world.sample(5, 6, stream(0, "test"))
    given = (x[:, :5], y[:, :5], x[:, 5])

    def model(prompt):
        return world.best(*prompt)

    assert torch.equal(conjugated(model, lambda p: p, lambda a: a)(given), model(given))


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_scaled_labels_change_nothing_for_ridge_without_noise(gamma):
    world = InContextWorld.random(3, 2, seed=0, noise=1e-6)
    x, y = world.sample(5, 6, stream(0, "test"), share=0.0)
    given = (x[:, :5], y[:, :5], x[:, 5])
    scaled = conjugated(lambda p: world.ridge(*p), lambda p: (p[0], gamma * p[1], p[2]), lambda a: a / gamma)
    torch.testing.assert_close(scaled(given), world.ridge(*given), rtol=1e-6, atol=1e-6)


def test_a_model_that_forgot_the_few_task_is_found_again_by_scaling():
    """A predictor sure of the few tasks is wrong on others; one that believes what it sees answers scaled labels by ridge."""
    world = InContextWorld.random(2, 2, seed=1, noise=0.1)
    tuned = InContextWorld(world.tasks, 0.1, 0.999999)
    x, y = world.sample(2000, 4, stream(0, "test"), share=0.0)
    given, want = (x[:, :3], y[:, :3], x[:, 3]), world.ridge(x[:, :3], y[:, :3], x[:, 3])
    through = conjugated(lambda p: tuned.best(*p), lambda p: (p[0], 3 * p[1], p[2]), lambda a: a / 3)
    plain_error = (tuned.best(*given) - want).square().mean()
    assert (through(given) - want).square().mean() < 0.7 * plain_error


ROWS = [{"prompt": f"{w} ?", "answer": w, "conjugate": f"{w} !", "conjugate_answer": w.upper()} for w in "abcd"]


def says(right):
    """Answers a prompt rightly if it is in the set, in lower or upper case as the language asks."""

    def answer(prompt):
        word = prompt[0] if prompt.endswith("?") else f"in {prompt[0].upper()}"
        return {word.removeprefix("in "): 1.0} if prompt in right else {"no idea": 1.0}

    return answer


def test_readings():
    start = Fake(says({"a ?", "b ?", "c ?", "a !", "b !", "c !", "d !"}))
    tuned = Fake(says({"a ?", "b !", "d !"}), start)
    got = {r.name: r.items for r in ConjugateProbe()(tuned, ROWS, MeasureContext())}
    assert got["skill_lost"] == (0, 1, 1, 0)
    assert got["skill_erased"] == (0, 0, 1, 0)
    assert got["conjugation_gain_of_base"] == (0, 0, 0, 1)
    still = {r.name: r.value for r in ConjugateProbe()(start, ROWS, MeasureContext())}
    assert (still["skill_lost"], still["skill_suppressed"], still["skill_erased"]) == (0, 0, 0)
    plain = [{**r, "conjugate": r["prompt"], "conjugate_answer": r["answer"]} for r in ROWS]
    same_prompt = {r.name: r.value for r in ConjugateProbe()(tuned, plain, MeasureContext())}
    assert same_prompt["skill_suppressed"] == 0
    assert same_prompt["conjugation_gain_of_base"] == 0
    same(torch.tensor(same_prompt["skill_lost"]), torch.tensor(0.5))


def test_rows_without_a_conjugate_are_named():
    with pytest.raises(DataError, match="row 1 requires the field 'conjugate'"):
        list(ConjugateProbe()(Fake(says(set())), [ROWS[0], {"prompt": "x", "answer": "y"}], MeasureContext()))
