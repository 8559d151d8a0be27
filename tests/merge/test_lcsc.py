"""lcsc: what coefficients mean, that their sum stays 1, that the search never falls below what it begins with; language and image."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.merge.average.soup import Soup
from luthier.merge.executor import merge_tensors
from luthier.merge.search.lcsc import LCSC, child, combined, ema_coefficients, lcsc, whole
from tests.merge.tiny import F64, equal, near, state
from tests.recipes.image_parts import ddpm_folder
from tests.tolerance import same


def checkpoints(count=6, seed=0):
    base = {k: v for k, v in state(0, dtype=F64).items() if v.is_floating_point()}
    return [near(base, seed * 10 + i, 0.3) for i in range(count)]


def distance(target):
    return lambda w: -float(sum((w[k].double() - target[k].double()).square().sum() for k in target))


def test_one_hot_uniform_and_geometric_coefficients_are_what_they_are_called():
    models = checkpoints()
    for i in range(6):
        assert equal(combined(models, [float(i == j) for j in range(6)]), models[i])
    soup = merge_tensors(Soup(), models[0], models)
    uniform = combined(models, [1 / 6] * 6)
    for decay in (0.0, 0.3, 0.9):
        running = dict(models[0])
        for one in models[1:]:
            running = {k: decay * v + (1 - decay) * one[k] for k, v in running.items()}
        mixed = combined(models, ema_coefficients(6, decay).tolist())
        for k in running:
            same(mixed[k], running[k])
            same(uniform[k], soup[k])
    assert float(ema_coefficients(6, 0.7).sum()) == pytest.approx(1.0, abs=1e-14)


def test_children_sum_to_one_and_take_each_coefficient_from_a_parent():
    g = torch.Generator().manual_seed(0)
    parents = whole(torch.randn(3, 5, generator=g, dtype=F64))
    same(parents.sum(1), torch.ones(3, dtype=F64))
    negative = False
    for _ in range(200):
        made = child(parents, 0.5, 0.5, g)
        assert float(made.sum()) == pytest.approx(1.0, abs=1e-12)
        negative = negative or bool((made < 0).any())
        still = child(parents[:1], 0.5, 1e-9, g)
        same(still, parents[0])
    assert negative


def test_every_mix_that_is_scored_has_sum_one_and_the_same_seed_tries_the_same():
    ones, seen = [{"w": torch.ones(2, dtype=F64), "n": torch.tensor([3])}] * 5, []
    lcsc(ones, lambda w: seen.append(float(w["w"][0])) or 0.0, trials=60)
    assert len(seen) == 60
    assert all(v == pytest.approx(1.0, abs=1e-9) for v in seen)
    models = checkpoints()
    a, b, other = (lcsc(models, distance(models[2]), trials=40, seed=s) for s in (0, 0, 1))
    assert a.weights == b.weights
    assert a.trials == b.trials
    assert a.weights != other.weights


@pytest.mark.parametrize("seed", range(3))
def test_it_never_falls_below_what_it_begins_with_and_finds_a_mix_beyond_the_simplex(seed):
    models = checkpoints(4, seed)
    coefficients = torch.tensor([-0.8, 0.1, 0.2, 1.5], dtype=F64)
    score = distance(combined(models, coefficients.tolist()))
    found = lcsc(models, score, trials=600)
    begin = [
        score(combined(models, c.tolist()))
        for c in (ema_coefficients(4, 0.0), torch.full((4,), 0.25), ema_coefficients(4, 0.5))
    ]
    assert found.score >= max(begin)
    assert found.score > 0.2 * max(begin)  # scores are negative distances: a fifth of the best beginning
    assert min(found.weights) < 0
    merged = merge_tensors(found.rule, models[0], models)
    assert score(merged) == pytest.approx(found.score, rel=1e-6)
    best = -float("inf")
    for trial in found.trials:
        assert trial.kept == (trial.score > best)
        best = max(best, trial.score)
    assert best == found.score


def test_checkpoints_of_an_image_model_are_read_from_their_folders(tmp_path):
    from diffusers import UNet2DModel

    from luthier.merge._sources import FolderTensors

    nets = []
    for i in range(3):
        at = ddpm_folder(tmp_path / str(i)) / "unet"
        net = UNet2DModel.from_pretrained(at)
        torch.manual_seed(i)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
        net.save_pretrained(at)
        nets.append({k: v.detach() for k, v in net.state_dict().items()})
    folders = [FolderTensors(tmp_path / str(i) / "unet") for i in range(3)]
    target = combined(nets, [0.5, -0.5, 1.0])
    found = LCSC(trials=40)(folders, distance(target))
    assert found.weights == lcsc(nets, distance(target), trials=40).weights
    shell = UNet2DModel.from_pretrained(tmp_path / "0" / "unet")
    shell.load_state_dict(combined(folders, found.weights))
    for one in folders:
        one.close()


@pytest.mark.parametrize(
    ("given", "match"),
    [(lambda: lcsc([], lambda w: 0.0), "at least one model"), (lambda: lcsc(checkpoints(), lambda w: 0.0, trials=3), "at least 7 trials"),
     (lambda: lcsc(checkpoints(), lambda w: float("nan")), "nan in trial 1")],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_a_sentence(given, match):
    with pytest.raises(LuthierError, match=match):
        given()


def test_a_single_checkpoint_is_left_as_it_is():
    (only,) = checkpoints(1)
    found = lcsc([only], lambda w: 1.0, trials=10)
    assert found.weights == pytest.approx((1.0,))
