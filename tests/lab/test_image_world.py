"""The image world: drawing, splits, concepts, the exact oracle, the soft reader, the learnt reader's training, digits."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import ConfigError, DataError
from luthier.lab.image import (
    ATTRIBUTES,
    CONCEPTS,
    SHAPES,
    SPLITS,
    Digits,
    Readings,
    World,
    draw,
    parse,
    to_bytes,
    to_float,
)
from luthier.lab.image._oracle import own_count, read, templates
from luthier.lab.image._reader import Reader, train_reader, worn
from luthier.lab.image._shapes import (
    JITTERS,
    combinations,
    contexts,
    corners,
    indices,
    keys,
    mask,
    novel_pairs,
    split_of,
)
from tests.tolerance import same

WORLD = World()
SOME = {"count": "two", "size": "small", "colour": "red", "shape": "cross", "position": "left", "background": "grey"}


def noisy(n: int, sigma: float, split: str = "test"):
    rows = WORLD.rows(split, n, seed=3)
    x = WORLD.stack(rows)
    return rows, x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


# -- drawing --------------------------------------------------------------------------------------------------


def test_drawing_equals_a_loop_over_pixels():
    for number, attributes in enumerate(combinations()):
        if number % 37:
            continue
        side, jitter = {"small": 5, "large": 7}[attributes["size"]], number % 4
        image, (dx, dy) = draw(attributes, jitter), JITTERS[jitter]
        middle = side // 2
        inside = {
            "square": lambda x, y: True,
            "diamond": lambda x, y, m=middle: abs(x - m) + abs(y - m) <= m,
            "triangle": lambda x, y, m=middle: abs(x - m) <= y // 2,
            "cross": lambda x, y, m=middle: abs(x - m) == abs(y - m),
        }[attributes["shape"]]
        painted = {(cx + dx + x, cy + dy + y) for cx, cy in corners(attributes) for x in range(side) for y in range(side)
                   if inside(x, y)}  # fmt: skip
        back = image[:, 15, 15] if (15, 15) not in painted else image[:, 0, 0]
        for y in range(16):
            for x in range(16):
                assert bool((image[:, y, x] != back).any()) == ((x, y) in painted)


def test_every_image_is_unique_and_its_objects_never_touch_the_edge_of_another():
    assert len({image.numpy().tobytes() for image in to_bytes(templates().pixels)}) == 4608 + 576
    for attributes in combinations():
        side = {"small": 5, "large": 7}[attributes["size"]]
        boxes = corners(attributes)
        assert all(x >= 0 and x + side + 1 <= 16 and y >= 0 and y + side + 1 <= 16 for x, y in boxes)
        if len(boxes) == 2:
            assert max(abs(boxes[0][0] - boxes[1][0]), abs(boxes[0][1] - boxes[1][1])) > side


@pytest.mark.parametrize(("side", "filled"), [(5, (25, 13, 13, 9)), (7, (49, 25, 25, 13))])
def test_area_of_the_shapes(side, filled):
    assert tuple(int(mask(shape, side).sum()) for shape in ATTRIBUTES["shape"]) == filled


def test_bytes_and_floats_are_inverse():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(every)), every)
    assert to_bytes(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("given", "match"),
    [({**SOME, "colour": "rde"}, "did you mean 'red'"), ({"shape": "cross"}, "got no count"), ({**SOME, "hue": "x"}, "hue"),
     ({**SOME, "shape": "flag"}, "has its own")],
)  # fmt: skip
def test_wrong_attributes_are_refused(given, match):
    with pytest.raises(DataError, match=match):
        draw(given)
    with pytest.raises(DataError, match="jitter"):
        draw(SOME, 4)


def test_captions_are_read_in_any_order():
    assert parse("grey cross small left red two") == SOME
    assert parse("") == {}
    assert parse("one zorb", {"zorb": "flag"}) == {"count": "one", "shape": "flag"}
    for caption, match in (("one two", "one count"), ("one rde", "did you mean 'red'")):
        with pytest.raises(DataError, match=match):
            parse(caption)


# -- splits ---------------------------------------------------------------------------------------------------


def test_splits_hold_every_combination_once():
    every = [a for split in SPLITS for a in keys(split)]
    assert len(every) == len(combinations()) == 1152
    assert {tuple(a.values()) for a in every} == {tuple(a.values()) for a in combinations()}
    assert {split: len(keys(split)) for split in SPLITS} == {"train": 806, "stop": 107, "test": 95, "novel": 144}


def test_novel_pairs_are_nowhere_else_and_every_value_is_still_seen():
    for split in SPLITS:
        inside = [(a["colour"], a["shape"]) in novel_pairs() for a in keys(split)]
        assert all(inside) if split == "novel" else not any(inside)
    for split in ("train", "stop", "test"):
        for name, values in ATTRIBUTES.items():
            assert {a[name] for a in keys(split)} == set(values)


def test_rows_do_not_depend_on_how_many_are_asked_for():
    few, many = WORLD.rows("train", 5, seed=1, partial=0.4), WORLD.rows("train", 900, seed=1, partial=0.4)
    assert [r["caption"] for r in few] == [r["caption"] for r in many[:5]]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(few, many[:5], strict=True))
    assert len({r["key"] for r in many[:806]}) == 806
    assert WORLD.rows("train", 5, seed=2)[0]["key"] != few[0]["key"]
    assert World(seed=1).rows("train", 3)[0]["key"] == WORLD.rows("train", 3, seed=1)[0]["key"]


def test_rows_say_what_they_show():
    for row in WORLD.rows("novel", 40, seed=0, partial=0.5):
        assert row["split"] == "novel" == split_of(row["attributes"])
        assert parse(row["caption"]) == row["asked"]
        assert row["asked"].items() <= row["attributes"].items()
        assert torch.equal(row["image"], draw(row["attributes"], row["jitter"]))
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        WORLD.rows("trian", 1)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_concepts_have_contexts_of_their_own(concept):
    parts = {split: {tuple(c.values()) for c in contexts(concept, split)} for split in SPLITS[:3]}
    assert [len(p) for p in parts.values()] == [24, 10, 14]
    assert len(set.union(*parts.values())) == 48
    rows = WORLD.concept_rows(concept, "train", 30, seed=0, word="zorb")
    assert all("zorb" in r["caption"] and concept not in r["caption"] for r in rows)
    assert WORLD.oracle(WORLD.stack(rows)).words() == [r["attributes"] for r in rows]
    assert all(len(r["image"].flatten(1).unique(dim=1).T) == 3 for r in rows)  # background and two colours
    with pytest.raises(ConfigError, match="split of a concept"):
        WORLD.concept_rows(concept, "novel", 1)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mislabelled_rows_are_wrong_in_one_word(share):
    rows = WORLD.mislabelled("train", 40, share=share)
    assert sum(r["noisy"] for r in rows) == round(share * 40)
    for row, clean in zip(rows, WORLD.rows("train", 40), strict=True):
        wrong = sum(a != b for a, b in zip(row["caption"].split(), row["clean"].split(), strict=True))
        assert wrong == int(row["noisy"])
        assert row["clean"] == clean["caption"] and torch.equal(row["image"], clean["image"])
    with pytest.raises(ConfigError, match="share"):
        WORLD.mislabelled("train", 4, share=1.5)


# -- the oracle -----------------------------------------------------------------------------------------------


def test_every_image_is_read_exactly():
    known = templates()
    some = torch.arange(0, 5184, 5)
    seen = WORLD.oracle(known.pixels[some].view(-1, 3, 16, 16))
    assert torch.equal(seen.template, some)
    assert torch.equal(seen.index, known.index[some]) and torch.equal(seen.jitter, known.jitter[some])
    assert float(seen.rmse.max()) == 0
    assert torch.equal(read(to_bytes(known.pixels[some]).view(-1, 3, 16, 16)).template, some)


def test_reading_equals_the_loop_over_templates():
    _, x = noisy(6, 0.8)
    known, seen = templates(), WORLD.oracle(x)
    for i, image in enumerate(x.double().flatten(1)):
        far = [float(((image - t) ** 2).mean()) for t in known.pixels.double()]
        assert int(seen.template[i]) == min(range(len(far)), key=far.__getitem__)
        assert float(seen.rmse[i]) == pytest.approx(math.sqrt(min(far)), rel=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6])
def test_reading_withstands_noise(sigma):
    rows, x = noisy(200, sigma)
    seen = WORLD.oracle(x)
    assert seen.accuracy([r["caption"] for r in rows])["all"] == 1
    assert float(seen.rmse.mean()) == pytest.approx(sigma, rel=0.02)


def test_two_images_of_other_attributes_are_three_apart():
    known = templates()
    far = torch.cdist(known.pixels[::7], known.pixels)
    other = (known.index[::7, None] != known.index[None]).any(-1)
    assert float(far[other].min()) > 3.4


def test_accuracy_counts_only_what_is_asked():
    rows = WORLD.rows("train", 8)
    seen = WORLD.oracle(WORLD.stack(rows))
    wrong = {**rows[0]["attributes"], "colour": "cyan" if rows[0]["attributes"]["colour"] != "cyan" else "red"}
    asked = [wrong, *(r["caption"] for r in rows[1:])]
    assert seen.accuracy(asked)["colour"] == 7 / 8 == seen.accuracy(asked)["all"]
    asked[0] = rows[0]["attributes"]["shape"]
    assert seen.accuracy(asked)["all"] == 1
    with pytest.raises(DataError, match="8 captions"):
        seen.accuracy(asked[:3])


def test_coverage_and_entropy_of_all_images():
    known = templates()
    own = Readings(
        known.index[: own_count()], known.jitter[: own_count()], torch.arange(own_count()), torch.zeros(own_count())
    )
    assert own.coverage() == 1
    assert own.entropy("colour") == pytest.approx(math.log(6)) and own.entropy("jitter") == pytest.approx(math.log(4))
    assert own.coverage("one flag") == 0
    some = read(draw(SOME, 2)[None])
    assert some.coverage(SOME) == 1 / 4 and some.coverage("red cross") == 1 / 192
    assert some.entropy("shape") == 0 and some.share("shape").tolist() == [0, 0, 0, 1, 0, 0, 0]
    with pytest.raises(DataError, match="attribute"):
        some.entropy("hue")


def test_truth_counts_the_keys_of_a_split():
    for name, values in ATTRIBUTES.items():
        want = [sum(a[name] == v for a in keys("train") if a["size"] == "small") for v in values]
        same(WORLD.truth("small", name)[: len(values)], torch.tensor(want) / sum(want))
    assert WORLD.truth("red cross", "size").tolist() == [0.5, 0.5]  # a novel pair: all keys count
    assert WORLD.truth("red", "colour").tolist() == [1, 0, 0, 0, 0, 0]
    rows = [r for r in WORLD.rows("train", 806) if r["attributes"]["size"] == "small"]
    seen = WORLD.oracle(WORLD.stack(rows))
    assert WORLD.total_variation(seen, "small", "colour") == pytest.approx(0, abs=1e-6)
    assert WORLD.total_variation(seen, "large", "size") == 1


@pytest.mark.parametrize(
    ("images", "match"),
    [(torch.zeros(3, 16, 16), "shape"), (torch.zeros(2, 1, 16, 16), "shape"), (torch.zeros(2, 3, 8, 8), "shape"),
     (torch.full((2, 3, 16, 16), math.nan), "NaN or infinity in 2 of 2")],
)  # fmt: skip
def test_images_that_cannot_be_read_are_named(images, match):
    for reader in (WORLD.oracle, WORLD.distance, lambda x: WORLD.log_probability(x, "red"), Reader()):
        with pytest.raises(DataError, match=match):
            reader(images)


def test_no_images_are_no_readings():
    seen = WORLD.oracle(torch.zeros(0, 3, 16, 16))
    assert len(seen) == 0 and seen.words() == []


# -- the soft reader ------------------------------------------------------------------------------------------


def test_log_probability_equals_the_loop():
    _, x = noisy(2, 0.5)
    known = templates()
    got = WORLD.log_probability(x, "red", sigma=2.0)
    for i, image in enumerate(x.double().flatten(1)):
        weight = [math.exp(-float(((image - t) ** 2).sum()) / 8) for t in known.pixels[:4608].double()]
        red = sum(w for w, index in zip(weight, known.index[:4608], strict=True) if index[2] == 0)
        assert float(got[i]) == pytest.approx(math.log(red / sum(weight)), abs=1e-4)


def test_log_probability_sums_to_one_over_values_and_is_zero_for_nothing_asked():
    rows, x = noisy(4, 0.3)
    total = torch.stack([WORLD.log_probability(x, colour, 3.0) for colour in ATTRIBUTES["colour"]]).logsumexp(0)
    assert float(total.abs().max()) < 1e-5
    same(WORLD.log_probability(x, ""), torch.zeros(4))
    each = WORLD.log_probability(x, [r["caption"] for r in rows])
    same(each, torch.stack([WORLD.log_probability(x[i : i + 1], r["caption"])[0] for i, r in enumerate(rows)]))
    assert float(each.min()) > -0.01
    with pytest.raises(DataError, match="sigma"):
        WORLD.log_probability(x, "red", 0.0)


def test_gradients_of_the_soft_reader_and_of_the_distance():
    _, x = noisy(2, 0.3)
    known = templates()
    at = x.clone().requires_grad_(True)
    WORLD.log_probability(at, "red", 4.0).sum().backward()
    flat = x.flatten(1).double()
    p = (-torch.cdist(flat, known.pixels[:4608].double()).square() / 32).softmax(-1)
    q = p * (known.index[:4608, 2] == 0)
    want = (q / q.sum(-1, keepdim=True) - p) @ known.pixels[:4608].double() / 16
    torch.testing.assert_close(at.grad.flatten(1).double(), want, rtol=1e-3, atol=1e-4)
    clean = to_float(draw(SOME)[None]).requires_grad_(True)
    WORLD.distance(clean).sum().backward()
    assert torch.isfinite(clean.grad).all()


def test_concepts_take_part_only_where_asked():
    flag = WORLD.stack(WORLD.concept_rows("flag", "test", 2))
    assert float(WORLD.log_probability(flag, "flag").min()) > -0.01
    assert float(WORLD.log_probability(WORLD.stack(WORLD.rows("test", 1)), "flag").max()) < -5
    assert torch.isfinite(WORLD.log_probability(flag, "square")).all()


# -- the learnt reader ----------------------------------------------------------------------------------------


def test_training_the_reader_is_repeatable_and_learns():
    one, two = train_reader(40, seed=3, batch=48), train_reader(40, seed=3, batch=48)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    rows, x = noisy(50, 0.0, "train")
    background = (one.index(x)[:, -1] == indices([r["attributes"] for r in rows])[:, -1]).float().mean()
    assert float(background) > 0.8
    assert not any(p.requires_grad for p in one.parameters())


def test_reader_gives_log_probabilities_with_gradients():
    reader, (_, x) = Reader(), noisy(3, 0.2)
    told = reader(x)
    for name, values in ATTRIBUTES.items():
        same(told[name].logsumexp(-1), torch.zeros(3))
        assert told[name].shape == (3, len(SHAPES) if name == "shape" else len(values))
    want = told["colour"][:, 2] + told["shape"][:, 4]
    same(reader.log_probability(x, {"shape": "flag", "colour": "blue"}), want)
    at = x.requires_grad_(True)
    reader.log_probability(at, {"colour": "red"}).sum().backward()
    assert float(at.grad.abs().sum()) > 0


def test_worn_images_keep_their_place():
    x = templates().pixels[:64]
    y = worn(x, torch.Generator().manual_seed(0))
    assert y.shape == (64, 3, 16, 16) and torch.isfinite(y).all()
    assert float((y.flatten(1) * x).mean()) > 0.3


# -- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_the_real_ones_and_split_once():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    digits, (x, y) = Digits(), load_digits(return_X_y=True)
    parts = [digits.indices(split) for split in ("train", "stop", "test")]
    assert sorted(i for part in parts for i in part) == list(range(1797))
    row = digits.rows("test", 1, seed=4)[0]
    assert row["label"] == y[row["number"]]
    assert (row["image"].flatten().float() * 16 / 255).round().tolist() == x[row["number"]].tolist()
    assert len({r["number"] for r in digits.rows("stop", len(parts[1]))}) == len(parts[1])


def test_digit_judge_reads_held_out_digits_and_sees_copies():
    pytest.importorskip("sklearn")
    digits = Digits()
    held = digits.rows("test", 300)
    seen = digits.oracle(digits.stack(held))
    assert seen.accuracy([r["label"] for r in held]) > 0.97
    assert float(seen.copy.min()) > 0
    assert float(digits.oracle(digits.stack(digits.rows("train", 20))).copy.max()) < 1e-3
    with pytest.raises(DataError, match="shape"):
        digits.oracle(torch.zeros(2, 8, 8))
    with pytest.raises(ConfigError, match="split"):
        digits.rows("novel", 1)
