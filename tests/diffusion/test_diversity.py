"""nn_repulsion, subset_select, contrastive_noise and promptmog against loops, and their limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from luthier.core import stream
from luthier.core.config import as_dict, build_component
from luthier.core.errors import Refused
from luthier.diffusion.guidance._groups import grouped
from luthier.diffusion.guidance.contrastive_noise import ContrastiveNoise, balance, contrastive_loss
from luthier.diffusion.guidance.nn_repulsion import NNRepulsion, repel
from luthier.diffusion.guidance.promptmog import PromptMoG, mixture_draw, simplex
from luthier.diffusion.guidance.subset_select import SubsetSelect, k_means, log_sparsity, representatives
from luthier.diffusion.samplers._driver import Noise, sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.schedules._grid import uniform_grid
from luthier.diffusion.schedules._kinds import convert, from_x0
from luthier.diffusion.schedules._path import Predictor, level
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.vp import VP
from luthier.lab.micro.mixture import Mixture
from tests.diffusion.oracle import F64, KINDS
from tests.tolerance import same

WORLD = Mixture.random(4, 3, seed=0)
GRID = uniform_grid(VP(), 8)


def exact(kind="eps", path=None):
    path = path or VP()

    def predict(x, t, c):
        at = level(path, t, x)
        return from_x0(x, WORLD.denoise(x.flatten(1), at.alpha.flatten(), at.sigma.flatten()).view(x.shape), at, kind)

    return Predictor(predict, path, kind)


def start(n=6, seed=0):
    return torch.randn(n, 3, generator=stream(seed, "start"), dtype=F64)


# --------------------------------------------------------------- nn_repulsion
def repelled(x, step, distance):
    """The formula in loops."""
    out = x.clone()
    for i in range(len(x)):
        others = [(float((x[i] - x[j]).norm()), j) for j in range(len(x)) if j != i]
        far, j = min(others)
        if distance is None or far / x[i].numel() <= distance:
            out[i] = x[i] + step[i] * (x[i] - x[j])
    return out


@pytest.mark.parametrize("distance", [None, 0.0, 0.3, 5.0])
def test_repulsion_equals_the_loop(distance):
    x, step = start().view(6, 1, 3), torch.rand(6, dtype=F64)
    same(repel(x, step, distance), repelled(x, step, distance))


@pytest.mark.parametrize("kind", KINDS)
def test_repulsion_pushes_clean_estimates_in_every_kind(kind):
    t, x = torch.full((6,), 0.6, dtype=F64), start()
    at, denoiser = level(VP(), t, x), exact(kind)
    got = NNRepulsion(eta=0.5).guide(denoiser, {})(x, t, None)
    clean = convert(x, denoiser(x, t), at, kind, "x0")
    want = repelled(clean, 0.5 * t / VP().t_max, None)
    torch.testing.assert_close(convert(x, got, at, kind, "x0"), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("off", [NNRepulsion(eta=0.0), NNRepulsion(eta=0.5, distance=0.0)], ids=repr)
def test_no_repulsion_changes_no_bit(off):
    assert torch.equal(sample(exact(), DDIM(), start(), GRID, guidance=[off]), sample(exact(), DDIM(), start(), GRID))


def test_repulsion_spreads_within_groups_only():
    plain, pushed = (sample(exact(), DDIM(), start(), GRID, guidance=g) for g in ([], [NNRepulsion(eta=0.8, group=3)]))
    for cut in (slice(0, 3), slice(3, 6)):
        alone = sample(exact(), DDIM(), start()[cut], GRID, guidance=[NNRepulsion(eta=0.8)])
        same(pushed[cut], alone)
        assert float(torch.pdist(pushed[cut]).min()) > float(torch.pdist(plain[cut]).min())


def test_repulsion_of_a_permuted_batch_is_permuted():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one = sample(exact(), DDIM(), start(), GRID, guidance=[NNRepulsion(eta=0.5)])
    same(sample(exact(), DDIM(), start()[order], GRID, guidance=[NNRepulsion(eta=0.5)]), one[order])


def test_repulsion_needs_company_and_whole_groups():
    with pytest.raises(Refused, match="two samples"):
        sample(exact(), DDIM(), start(1), GRID, guidance=[NNRepulsion()])
    with pytest.raises(Refused, match="whole groups of 4"):
        sample(exact(), DDIM(), start(), GRID, guidance=[NNRepulsion(group=4)])
    assert grouped(torch.zeros(6, 2, 2), 3, "test").shape == (2, 3, 4)


# -------------------------------------------------------------- subset_select
def test_farthest_is_within_twice_the_best_radius():
    for seed in range(5):
        x = torch.randn(11, 2, generator=stream(seed, "subset"), dtype=F64)
        kept = representatives(x, 3, "farthest", stream(0, "unused"))
        far = torch.cdist(x, x)
        best = min(float(far[:, list(c)].min(1).values.max()) for c in itertools.combinations(range(11), 3))
        assert float(far[:, kept].min(1).values.max()) <= 2 * best + 1e-12


@pytest.mark.parametrize("by", ["farthest", "kmeans", "uniform"])
def test_subsets_are_indices_in_order_without_repetition(by):
    x = start(12)
    kept = SubsetSelect(keep=4, by=by).choose(x)
    assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == 4
    assert SubsetSelect(keep=12, by=by).choose(x).tolist() == list(range(12))
    two = SubsetSelect(keep=2, by=by, group=6).choose(x)
    assert [int(i) // 6 for i in two] == [0, 0, 1, 1]
    copies = torch.cat((x[:1].expand(5, 3), x[1:3]))
    assert len(set(SubsetSelect(keep=5, by=by).choose(copies).tolist())) == 5


def test_k_means_finds_clusters_and_their_representatives():
    centre = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=F64)
    x = torch.cat(
        [c + 0.1 * torch.randn(n, 2, generator=stream(n, "k"), dtype=F64) for c, n in zip(centre, (50, 4, 2))]
    )
    means = k_means(x, 3, stream(0, "k"))
    assert float(torch.cdist(centre, means).min(1).values.max()) < 0.2
    kept = representatives(x, 3, "kmeans", stream(0, "k"))
    assert {(0 if i < 50 else 1 if i < 54 else 2) for i in kept.tolist()} == {0, 1, 2}


def test_k_means_equals_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.cat(
        [c + torch.randn(30, 2, generator=stream(i, "sk"), dtype=F64) for i, c in enumerate((0.0, 6.0, -7.0))]
    )
    want = torch.tensor(cluster.KMeans(3, n_init=10, random_state=0).fit(x.numpy()).cluster_centers_)
    got = k_means(x, 3, stream(0, "k"))
    same(got[got[:, 0].argsort()], want[want[:, 0].argsort()])


def test_uniform_weights_even_out_the_density():
    """On the line with spacings of 1 and 3 the weights differ threefold: equal weight for equal length."""
    x = torch.cat((torch.arange(0, 60, 1.0, dtype=F64), torch.arange(62, 242, 3.0, dtype=F64)))[:, None]
    weight = log_sparsity(x).exp()
    assert float(weight[90] / weight[30]) == pytest.approx(3.0)
    m = round(120 ** (2 / 3) * math.log(120) ** (1 / 3))
    assert float(weight[30]) == pytest.approx(sorted((x - x[30]).abs().flatten().tolist())[m])


def test_driver_keeps_the_chosen_samples():
    whole = sample(exact(), DDIM(), start(), GRID)
    kept = sample(exact(), DDIM(), start(), GRID, guidance=[SubsetSelect(keep=2)])
    assert torch.equal(kept, whole[SubsetSelect(keep=2).choose(whole)])
    with pytest.raises(Refused, match="at least 9 samples"):
        SubsetSelect(keep=9).choose(whole)


# ---------------------------------------------------------- contrastive_noise
def test_contrastive_loss_equals_the_loop():
    x, ref = torch.randn(2, 5, 4, generator=stream(0, "cno"), dtype=F64)
    total, gamma = 0.0, 1 / (0.2 * math.log(4) + 1)
    for i in range(5):
        sims = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in range(5)]
        pull = float(torch.cosine_similarity(x[i], ref[i], dim=0))
        total += -math.log(math.exp(pull / (gamma * 0.2)) / sum(math.exp(s / 0.2) for s in sims)) / 5
    same(contrastive_loss(x, ref, 0.2), torch.tensor(total, dtype=F64))
    order = torch.tensor([4, 2, 0, 1, 3])
    same(contrastive_loss(x[order], ref[order], 0.2), torch.tensor(total, dtype=F64))
    assert balance(0.1, 5) == pytest.approx(0.878, abs=5e-4)


def test_no_steps_leave_the_noise():
    x = start()
    assert ContrastiveNoise(steps=0).start(x, torch.full((6,), 0.9), exact(), None) is x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", [False, True])
def test_optimised_noise_lowers_the_loss(kind, through):
    x, t = start(), torch.full((6,), 0.8, dtype=F64)
    guidance = ContrastiveNoise(steps=20, lr=0.02, through=through)
    moved = guidance.start(x, t, exact(kind), None)
    estimates = [guidance.estimates(z, t, exact(kind), None)[0] for z in (x, moved)]
    assert float(contrastive_loss(estimates[1], estimates[0])) < float(contrastive_loss(estimates[0], estimates[0]))
    assert not moved.requires_grad
    alone = guidance.start(x[:3], t[:3], exact(kind), None)
    groups = ContrastiveNoise(steps=20, lr=0.02, through=through, group=3).start(x, t, exact(kind), None)
    torch.testing.assert_close(groups[:3], alone, rtol=1e-6, atol=1e-7)


def test_the_stopped_gradient_moves_noise_by_the_estimates_own_gradient():
    """One step of the loss at a denoiser that says nothing of x: the gradient is that of x0 = (x - sigma eps) / alpha."""
    path, t = VP(), torch.full((4,), 0.5, dtype=F64)
    x, eps = torch.randn(2, 4, 3, generator=stream(2, "cno"), dtype=F64)
    denoiser, at = Predictor(lambda z, t, c: eps, path, "eps"), level(path, t, x)
    guidance = ContrastiveNoise()
    z = x.clone().requires_grad_(True)
    ref = torch.randn(1, 4, 3, generator=stream(3, "cno"), dtype=F64)
    (got,) = torch.autograd.grad(contrastive_loss(guidance.estimates(z, t, denoiser, None), ref).sum(), z)
    x0 = ((x - at.sigma * eps) / at.alpha).requires_grad_(True)
    (slope,) = torch.autograd.grad(contrastive_loss(x0[None], ref).sum(), x0)
    same(got, slope / at.alpha)


def test_images_are_pooled_to_the_window():
    denoiser = Predictor(lambda x, t, c: x, Flow(), "velocity")
    x, t = torch.randn(3, 2, 8, 8), torch.full((3,), 1.0)
    assert ContrastiveNoise(window=4).estimates(x, t, denoiser, None).shape == (1, 3, 32)
    assert ContrastiveNoise(window=8).estimates(x, t, denoiser, None).shape == (1, 3, 128)


def test_contrast_needs_three():
    with pytest.raises(Refused, match="three samples"):
        sample(exact(), DDIM(), start(2), GRID, guidance=[ContrastiveNoise()])


# ------------------------------------------------------------------ promptmog
@pytest.mark.parametrize(("modes", "dimension"), [(2, 1), (4, 3), (5, 9), (50, 64)])
def test_corners_are_a_regular_simplex(modes, dimension):
    u = simplex(modes, dimension, stream(0, "simplex"))
    want = torch.full((modes, modes), -1 / (modes - 1), dtype=F64).fill_diagonal_(1.0)
    same(u @ u.T, want)
    same(u.sum(0), torch.zeros(dimension, dtype=F64))


def test_one_mode_without_spread_is_the_prompt():
    value = torch.randn(3, 5, 16, generator=stream(0, "prompt"))
    condition = {"tokens": value}
    assert PromptMoG(similarity=1.0, sigma=0.0).condition(condition, Noise(0, [0, 1, 2])) is condition
    assert torch.equal(PromptMoG(modes=1, sigma=0.0).condition(condition, Noise(0, [0, 1, 2]))["tokens"], value)


def test_draws_have_the_mixtures_moments():
    d, k, n, similarity, sigma = 6, 4, 200_000, 0.8, 0.3
    g = stream(0, "moments")
    token, corners = torch.randn(d, generator=g, dtype=F64), simplex(k, d, g)
    mode, z = torch.randint(k, (n,), generator=g), torch.randn(n, d, generator=g, dtype=F64)
    drawn = mixture_draw(token.expand(n, d), corners, mode, z, similarity, sigma)
    radius = float(token.norm()) * math.sqrt(2 * (1 - similarity))
    want = sigma**2 * torch.eye(d, dtype=F64) + radius**2 * corners.T @ corners / k
    torch.testing.assert_close(drawn.mean(0), token, rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(drawn.T), want, rtol=0, atol=0.02)
    centres = token + radius * corners
    same((centres - token).norm(dim=-1), torch.full((k,), radius, dtype=F64))
    same(centres.mean(0), token)


def test_special_tokens_stay_and_rows_are_independent():
    value = torch.randn(1, 8, 64, generator=stream(0, "prompt")).expand(4, 8, 64).clone()
    guidance = PromptMoG(sigma=0.1, modes=10)
    out = guidance.condition({"tokens": value, "mask": torch.ones(4, 8, dtype=torch.long)}, Noise(3, [0, 1, 2, 3]))
    assert torch.equal(out["tokens"][:, [0, 1, -1]], value[:, [0, 1, -1]])
    assert torch.equal(out["mask"], torch.ones(4, 8, dtype=torch.long))
    moved = out["tokens"][:, 2:-1]
    assert not torch.isclose(moved, value[:, 2:-1]).all(-1).any()
    part = guidance.condition({"tokens": value[:1]}, Noise(3, [2]))
    assert torch.equal(part["tokens"][0], out["tokens"][2])


def test_vectors_without_tokens_and_chosen_names():
    value = torch.randn(2, 16)
    out = PromptMoG(modes=5, names=("pooled",)).condition({"pooled": value, "other": value}, Noise(0, [0, 1]))
    assert not torch.equal(out["pooled"], value) and torch.equal(out["other"], value)


def test_promptmog_refuses_what_it_cannot_move():
    noise = Noise(0, [0])
    with pytest.raises(Refused, match="encoded conditions"):
        PromptMoG().condition({"ids": torch.ones(1, 4, dtype=torch.long)}, noise)
    with pytest.raises(Refused, match="one mode more"):
        PromptMoG(modes=50).condition({"pooled": torch.ones(1, 8)}, noise)
    with pytest.raises(Refused, match="row number"):
        PromptMoG(modes=5).condition({"pooled": torch.ones(1, 8)}, None)
    assert PromptMoG().condition(None, noise) is None


def test_all_round_trip():
    for one in (
        NNRepulsion(eta=0.3, group=4),
        SubsetSelect(by="kmeans"),
        ContrastiveNoise(gamma=0.5),
        PromptMoG(names=("a",)),
    ):
        assert build_component(as_dict(one), "diffusion", "guidance") == one
