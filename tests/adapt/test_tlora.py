"""tlora: the loop over images and components, its limits, and the time of a real network's passes."""

from __future__ import annotations

import pytest
import torch

from luthier.adapt.lowrank.tlora import TLoRA, active
from luthier.core import Sites
from luthier.core.errors import ConfigError, Refused
from luthier.core.moment import at_moment, moment
from tests.tolerance import same

F64 = torch.float64


def parts(adaptation: TLoRA, moved: float = 0.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    p = adaptation.init(torch.zeros(6, 5, dtype=F64), g)
    return {k: v + moved * torch.randn(v.shape, generator=g, dtype=F64) if "0" not in k else v for k, v in p.items()}


def test_equals_the_loop_over_images_and_components():
    adaptation = TLoRA(rank=4, least=1, power=1.5)
    p, x, share = parts(adaptation, 0.3), torch.randn(3, 2, 5, dtype=F64), torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    with at_moment(share):
        got = adaptation.forward(x, torch.zeros(6, 5), p)
    for i in range(3):
        rank = int((1 - float(share[i])) ** 1.5 * 3 + 1e-6) + 1
        delta = torch.zeros(6, 5, dtype=F64)
        for k in range(rank):
            delta += float(p["l"][k]) * torch.outer(p["p"][:, k], p["q"][k])
            delta -= float(p["l0"][k]) * torch.outer(p["p0"][:, k], p["q0"][k])
        same(got[i], x[i] @ delta.T)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, None])
def test_at_the_start_it_is_nothing_at_any_time(share):
    adaptation, x = TLoRA(rank=4, least=2), torch.randn(3, 5, dtype=F64)
    if share is None:
        assert not adaptation.forward(x, torch.zeros(6, 5), parts(adaptation)).any()
        return
    with at_moment(torch.full((3,), share)):
        assert not adaptation.forward(x, torch.zeros(6, 5), parts(adaptation)).any()


def test_components_above_the_rank_get_no_gradient():
    adaptation = TLoRA(rank=5, least=2)
    p = {k: v.requires_grad_("0" not in k) for k, v in parts(adaptation, 0.2).items()}
    with at_moment(torch.tensor([1.0, 1.0])):
        total = adaptation.forward(torch.randn(2, 5, dtype=F64), torch.zeros(6, 5), p).square().sum()
    by_p, by_l, by_q = torch.autograd.grad(total, [p["p"], p["l"], p["q"]])
    assert by_p[:, :2].any()
    assert not by_p[:, 2:].any()
    assert not by_l[2:].any()
    assert not by_q[2:].any()


def test_rank_by_time():
    ranks = active(torch.linspace(0, 1, 101), 16, 3, 1.0)
    assert int(ranks[0]) == 16
    assert int(ranks[-1]) == 3
    assert (ranks.diff() <= 0).all()
    # the authors' formula with 1000 steps
    for t in range(0, 1001, 25):
        assert (
            int(active(torch.tensor(t / 1000, dtype=F64), 16, 3, 2.0)) == int(((1000 - t) / 1000) ** 2 * 13 + 1e-6) + 3
        )


@pytest.mark.parametrize("triplets", ["last", "first"])
def test_the_factors_begin_orthonormal_and_ordered(triplets):
    p = parts(TLoRA(rank=3, least=1, triplets=triplets))
    torch.testing.assert_close(p["p"].T @ p["p"], torch.eye(3, dtype=F64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(p["q"] @ p["q"].T, torch.eye(3, dtype=F64), rtol=1e-5, atol=1e-6)
    assert (p["l"].diff() <= 0).all()


def test_bad_settings_and_sites_are_refused():
    with pytest.raises(ConfigError, match="least <= rank"):
        TLoRA(rank=2, least=3)
    with at_moment(torch.tensor([0.1, 0.2])), pytest.raises(Refused, match="one row for each image"):
        TLoRA(rank=2, least=1).mask(torch.zeros(3, 5), 2)
    assert moment() is None


def test_thin_weights_have_fewer_components():
    adaptation, x = TLoRA(rank=8, least=2), torch.randn(2, 3)
    p = {k: v + ("0" not in k) for k, v in adaptation.init(torch.zeros(6, 3), torch.Generator().manual_seed(0)).items()}
    assert p["l"].shape == (3,)
    with at_moment(torch.tensor([0.0, 0.1])):
        same(adaptation.forward(x, torch.zeros(6, 3), p), x @ adaptation.delta(torch.zeros(6, 3), p).T)


def test_a_real_network_tells_its_time(tmp_path):
    from luthier.diffusion.schedules._scheduler import kind_said, path_of
    from luthier.models.denoiser import DenoiserView, load_denoiser
    from tests.recipes.image_parts import stable_folder

    loaded = load_denoiser(str(stable_folder(tmp_path)))
    path = path_of(loaded.scheduler)
    view = DenoiserView(loaded.module, path, kind_said(loaded.scheduler), path.network_time)
    x, t = torch.randn(3, *loaded.shape), torch.tensor([0.05, 0.5, 0.95])
    condition = {
        k: v[:3]
        for k, v in loaded.module.conditioner.tokens([{"caption": "a"}, {"caption": "b"}, {"caption": "c"}]).items()
    }
    with torch.no_grad():
        before = view.run(x, t, condition)
    attached = TLoRA(rank=4, least=1).attach(loaded.module, Sites("network*to_q"), 0)
    assert torch.equal(view.run(x, t, condition), before)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in attached.named_parameters():
            if name.endswith("l"):
                p[1:] += torch.randn(3, generator=g)  # only components that rest at high noise
    now = view.run(x, t, condition)
    off = (now - before).flatten(1).abs().amax(1)
    assert off[0] > 1e-4
    assert off[2] < 1e-6
    alone = torch.cat(
        [view.run(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in condition.items()}) for i in range(3)]
    )
    torch.testing.assert_close(alone, now, rtol=1e-4, atol=1e-5)
