"""The reward world: known utilities, stated distortions, annotators whose probabilities are exact, a sloppy painter."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import ConfigError, DataError
from luthier.lab.image import ATTRIBUTES, Reader, World, to_float
from luthier.lab.language import World as Language
from luthier.lab.reward import (
    Annotator,
    Distorted,
    best_accuracy,
    best_log_loss,
    brightness,
    clarity,
    image_preferences,
    image_quirk,
    image_scores,
    image_utility,
    pairs,
    reader_reward,
    redness,
    sameness,
    story_utility,
    template_reward,
    text_quirk,
    wordiness,
)
from tests.tolerance import same

WORLD = World()
ROWS = WORLD.rows("test", 12)
IMAGES = WORLD.stack(ROWS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- utilities ------------------------------------------------------------------------------------------------


def test_image_utility_is_one_at_best_and_falls_by_attribute_and_distance():
    same(image_utility(ROWS, IMAGES), torch.ones(12))
    wrong = [
        {**r, "asked": {**r["asked"], "size": {"small": "large", "large": "small"}[r["asked"]["size"]]}} for r in ROWS
    ]
    same(image_utility(wrong, IMAGES), torch.full((12,), 5 / 6))
    only = [{"caption": r["attributes"]["colour"]} for r in ROWS]
    same(image_utility(only, IMAGES + 0.1), torch.full((12,), 0.8))
    same(image_utility([{"caption": ""}] * 12, IMAGES), torch.ones(12))
    with pytest.raises(DataError, match="rows with a caption"):
        image_utility([{"label": 3}] * 12, IMAGES)


def test_redness_and_brightness_of_plain_images():
    plain = torch.tensor([1.0, 0.5, -1.0]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    same(redness([], plain), torch.full((2,), 1.25))
    same(brightness([], plain), torch.full((2,), 1 / 6))


def test_clarity_is_minus_the_rmse():
    noisy = IMAGES + 0.2 * torch.randn(IMAGES.shape, generator=generator())
    same(clarity(ROWS, noisy), -WORLD.oracle(noisy).rmse)


def test_template_and_reader_rewards_sum_what_is_asked():
    noisy = IMAGES + 0.2 * torch.randn(IMAGES.shape, generator=generator())
    want = torch.stack([WORLD.log_probability(noisy[i : i + 1], r["asked"])[0] for i, r in enumerate(ROWS)])
    same(template_reward(ROWS, noisy), want)
    torch.manual_seed(0)
    reader = Reader()
    told = reader(noisy)
    for i, row in enumerate(ROWS):
        parts = [told[n][i, values.index(row["asked"][n])] for n, values in ATTRIBUTES.items()]
        same(reader_reward(ROWS, noisy, reader)[i], torch.stack(parts).sum())
    flags = WORLD.concept_rows("flag", "test", 2)
    asked = reader.log_probability(WORLD.stack(flags)[:1], flags[0]["asked"])
    same(reader_reward(flags, WORLD.stack(flags), reader)[:1], asked)


@pytest.mark.parametrize("reward", [template_reward, redness, brightness, clarity, image_quirk(3)])
def test_rewards_of_images_have_gradients(reward):
    at = (IMAGES[:2] + 0.1).requires_grad_(True)
    reward(ROWS[:2], at).sum().backward()
    assert torch.isfinite(at.grad).all() and float(at.grad.abs().sum()) > 0


def test_quirks_are_fixed_and_about_standard():
    rows = WORLD.rows("train", 800)
    values = image_quirk(1)(rows, WORLD.stack(rows))
    assert torch.equal(values, image_quirk(1)(rows, WORLD.stack(rows)))
    assert not torch.equal(values, image_quirk(2)(rows, WORLD.stack(rows)))
    assert abs(float(values.mean())) < 0.75 and 0.3 < float(values.std()) < 1.5
    texts = text_quirk(1)([{}] * 3000, [f"word {i}" for i in range(3000)])
    assert abs(float(texts.mean())) < 0.06 and abs(float(texts.std()) - 1) < 0.05
    assert text_quirk(1)([{}], ["a b <|end|>"]).item() == text_quirk(1)([{}], ["a b"]).item()


def test_utilities_of_stories():
    world = Language()
    rows = world.rows("story", "test", 6, seed=0)
    texts = [r["response"] for r in rows]
    same(story_utility(rows, texts), torch.tensor([world.utility(r, t) for r, t in zip(rows, texts, strict=True)]))
    same(wordiness(rows[:2], ["a b c", ""]), torch.tensor([0.3, 0.0]))
    same(sameness(rows[:3], ["a a a a", "a b", ""]), torch.tensor([0.75, 0.0, 0.0]))


# -- distortions ----------------------------------------------------------------------------------------------


def test_undistorted_is_true_and_parts_add():
    same(Distorted(image_utility, redness, weight=0)(ROWS, IMAGES), image_utility(ROWS, IMAGES))
    got = Distorted(image_utility, redness, weight=2.0, ceiling=0.5)(ROWS, IMAGES)
    same(got, 0.5 + 2 * redness(ROWS, IMAGES))


# -- annotators -----------------------------------------------------------------------------------------------


def test_probability_equals_the_formula():
    u, v, f, g = torch.randn(4, 9, dtype=torch.float64, generator=generator())
    got = Annotator(sharpness=2.0, noise=0.1, bias=0.7).probability((u, v), (f, g))
    for i in range(9):
        felt = 2 * (u[i] - v[i] + 0.7 * (f[i] - g[i])).item()
        assert got[i].item() == pytest.approx(0.1 + 0.8 / (1 + math.exp(-felt)), rel=1e-12)


def test_limits_of_annotators():
    u, v = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    assert Annotator(sharpness=math.inf).probability((u, v)).tolist() == [1, 0, 0.5]
    assert Annotator(sharpness=math.inf, noise=0.2).probability((u, v)).tolist() == pytest.approx([0.8, 0.2, 0.5])
    assert Annotator(noise=0.5).probability((u, v)).tolist() == [0.5] * 3
    same(Annotator().probability((u, v)) + Annotator().probability((v, u)), torch.ones(3, dtype=torch.float64))
    for wrong in ({"sharpness": 0.0}, {"noise": 0.6}, {"noise": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Annotator(**wrong)


def test_verdicts_come_as_often_as_their_probability_says():
    u = torch.linspace(-1, 1, 5).repeat_interleave(4000)
    annotator = Annotator(noise=0.1)
    first, probability = annotator((u, torch.zeros_like(u)), None, generator())
    want = annotator.probability((u, torch.zeros_like(u)))
    for part, p in zip(first.view(5, -1), want.view(5, -1)[:, 0], strict=True):
        assert float(part.double().mean()) == pytest.approx(float(p), abs=0.03)
    same(probability, torch.where(first, want, 1 - want))


def test_no_judge_can_beat_the_best_log_loss():
    p = torch.rand(20000, dtype=torch.float64, generator=generator())
    first = torch.rand(20000, dtype=torch.float64, generator=generator(1)) < p
    loss = -torch.where(first, p, 1 - p).log().mean()
    assert best_log_loss(p) == pytest.approx(float(loss), abs=0.01)
    assert best_accuracy(p) == pytest.approx(float(((p > 0.5) == first).double().mean()), abs=0.01)
    assert best_log_loss(torch.tensor([0.0, 1.0])) == 0 and best_log_loss(torch.tensor([0.5])) == pytest.approx(
        math.log(2)
    )


# -- pairs ----------------------------------------------------------------------------------------------------


def test_pairs_say_what_was_judged():
    rows = image_preferences(60, "train", 0, Annotator(noise=0.1, bias=0.5))
    for row in rows:
        for side in ("chosen", "rejected"):
            got = image_utility([row], row[side][None])
            assert float(got) == pytest.approx(row[f"utility_{side}"], abs=1e-5)
        assert row["flipped"] == (row["utility_chosen"] < row["utility_rejected"])
        assert "image" not in row and row["split"] == "train"
    assert 0 < sum(r["flipped"] for r in rows) < 40
    again = image_preferences(60, "train", 0, Annotator(noise=0.1, bias=0.5))
    assert all(torch.equal(a["chosen"], b["chosen"]) for a, b in zip(rows, again, strict=True))


def test_a_sure_annotator_never_errs_and_a_biased_one_likes_brightness():
    sure = image_preferences(60, "train", 1, Annotator(sharpness=math.inf))
    assert not any(r["flipped"] for r in sure)

    def gap(bias: float) -> float:
        rows = image_preferences(150, "train", 2, Annotator(bias=bias))
        sides = [brightness([], to_float(torch.stack([r[s] for r in rows]))) for s in ("chosen", "rejected")]
        return float((sides[0] - sides[1]).mean())

    assert gap(3.0) > gap(0.0) + 0.1 > gap(-3.0) + 0.2


def test_chosen_images_are_not_good_enough_to_imitate():
    rows = image_preferences(200, "train", 3)
    chosen = torch.tensor([r["utility_chosen"] for r in rows])
    rejected = torch.tensor([r["utility_rejected"] for r in rows])
    assert float(chosen.mean()) < 0.75 and float(chosen.mean() - rejected.mean()) > 0.1


def test_pairs_of_texts_by_the_same_annotator():
    world = Language()
    rows = world.rows("story", "train", 20, seed=0)
    good, bad = [r["response"] for r in rows], ["" for _ in rows]
    made = pairs(rows, (bad, good), story_utility, Annotator(sharpness=math.inf), generator())
    assert [r["chosen"] for r in made] == good and all("response" not in r and r["prompt"] for r in made)
    bias = Annotator(sharpness=math.inf, bias=-100.0)
    assert [r["chosen"] for r in pairs(rows, (bad, good), story_utility, bias, generator(), wordiness)] == bad
    with pytest.raises(DataError, match="20 rows, 20 and 3"):
        pairs(rows, (bad, good[:3]), story_utility, Annotator(), generator())


def test_scored_candidates_come_in_groups():
    rows = image_scores(5, "stop", 0, candidates=3)
    assert [r["group"] for r in rows] == [i for i in range(5) for _ in range(3)]
    same(image_utility(rows, torch.stack([r["image"] for r in rows])), torch.tensor([r["score"] for r in rows]))
    for wrong in (lambda: image_scores(2, "stop", 0, candidates=0), lambda: image_scores(0, "stop", 0),
                  lambda: image_preferences(0, "stop", 0)):  # fmt: skip
        with pytest.raises(ConfigError, match=">= 1"):
            wrong()
