"""saft and the storage of sparse updates: loops, limits, and what must be refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from luthier.adapt._sparse import draw, share, top
from luthier.adapt.attach import Several, attach
from luthier.adapt.sparse.neuroada import NeuroAda
from luthier.adapt.sparse.saft import SAFT, strongest
from luthier.core import Sites
from luthier.core.errors import CheckpointError, NonFinite, Refused
from tests.adapt.sparse_tools import GivenLosses, trained
from tests.adapt.tiny import bits, gpt2, llama, logits, shaken
from tests.tolerance import same

EVERY = Sites("*", kinds=("linear", "embedding", "norm"))


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Where the bits of the parameters differ."""
    now = {n: p.detach() for n, p in model.named_parameters()}
    return {n: now[n].view(torch.int32) != before[n].view(torch.int32) for n in now}


def calibrated(model: nn.Module, losses: int = 3, sites: Sites | None = None, **given: object):
    handle = attach(model, SAFT(batches=losses, **given), sites)  # type: ignore[arg-type]
    weigh = [lambda t=t: (logits(model) * (1 + t)).square().mean() for t in range(losses)]
    handle.calibrate(GivenLosses(weigh))
    return handle


@pytest.mark.parametrize("seed", range(4))
def test_top_equals_the_loop(seed: int):
    g = torch.Generator().manual_seed(seed)
    scores = {
        "a": torch.randint(0, 4, (5, 3), generator=g).double(),
        "b": torch.randint(0, 4, (7,), generator=g).double(),
    }
    flat = [(-float(s), name, at) for name, t in scores.items() for at, s in enumerate(t.flatten())]
    for count in (1, 6, 22):
        want = {(n, at) for _, n, at in sorted(flat)[:count]}
        got = top(scores, count)
        assert {(n, at) for n, t in got.items() for at in t.tolist()} == want
        assert all(t.tolist() == sorted(t.tolist()) for t in got.values())
    with pytest.raises(NonFinite, match="those of b are not"):
        top({"a": scores["a"], "b": scores["b"] / 0}, 1)


def test_draw_is_without_replacement_and_even():
    for count in (2, 6):
        g = torch.Generator().manual_seed(0)
        hits = torch.zeros(8)
        for _ in range(4000):
            made = draw({"a": 5, "b": 3}, count, g)
            joined = torch.cat([made["a"], made["b"] + 5])
            assert len(joined.unique()) == count
            hits[joined] += 1
        assert (hits / 4000 - count / 8).abs().max() < 0.03


def test_share_takes_the_decimal_that_was_written():
    assert [share(d, n) for d, n in ((0.1, 30), (0.07, 100), (0.001, 999), (1.0, 7))] == [3, 7, 1, 7]


def test_positions_are_those_of_the_loop_over_gradients():
    model = llama(layers=1).double()
    plain = copy.deepcopy(model)
    handle = calibrated(model, density=0.01)
    for t in range(3):
        (logits(plain) * (1 + t)).square().mean().backward()  # accumulates over the batches
    names = [f"{s.name}.weight" for s in handle.sites]
    ranked = sorted(((-abs(v), n, at) for n in names for at, v in enumerate(plain.get_parameter(n).grad.flatten().tolist())),
                    key=lambda item: item[0])  # fmt: skip
    count = math.ceil(0.01 * sum(plain.get_parameter(n).numel() for n in names))
    want = {(n, at) for _, n, at in ranked[:count]}
    assert {(n, at) for n, (_, index) in handle.entries().items() for at in index.tolist()} == want
    assert handle.describe()["trained"] == count


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon])
def test_exactly_that_many_entries_change_and_the_rest_keep_their_bits(optimiser: type[torch.optim.Optimizer]):
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] = -0.0  # a sum with 0 would turn it into +0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = calibrated(model, density=0.003)
    if optimiser is not torch.optim.Muon:
        trained(model, logits, optimiser, lr=0.05, weight_decay=0.1)
    else:  # rules that update whole matrices never see one
        assert all(p.ndim == 1 for _, p in handle.named_parameters())
        shaken(handle)
    positions = {n: index.long() for n, (_, index) in handle.entries().items()}
    handle.merge_into_model()
    total = 0
    for name, moved in changed(model, before).items():
        allowed = positions.get(name, torch.empty(0, dtype=torch.long))
        assert set(moved.flatten().nonzero()[:, 0].tolist()) <= set(allowed.tolist())
        total += int(moved.sum())
    assert total == math.ceil(0.003 * sum(before[n].numel() for n in positions))


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_density_one_is_full_training_of_the_sites(build, optimiser: type[torch.optim.Optimizer]):
    """All kinds: transposed and plain linear layers with biases, embeddings, norms."""
    model = build().double()
    plain = copy.deepcopy(model)
    sites = EVERY if build is llama else Sites("all-linear,*ln_1", kinds=("linear", "norm"))
    handle = attach(model, SAFT(density=1.0), sites)
    names = set(handle.weights())
    for n, p in plain.named_parameters():
        p.requires_grad_(n in names)
    for one in (model, plain):
        trained(one, logits, optimiser, lr=0.01)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-6, atol=1e-7)  # float32 inside a Llama's norms
    for name, value in handle.merged().items():
        torch.testing.assert_close(value, plain.get_parameter(name).detach(), rtol=1e-5, atol=1e-6)


def test_gradients_equal_the_dense_ones_at_the_positions():
    model = gpt2().double()
    plain = copy.deepcopy(model)
    handle = attach(model, SAFT(density=0.05), Sites("*", kinds=("linear", "embedding", "norm")))
    logits(model).square().mean().backward()
    logits(plain).square().mean().backward()
    tied = {"transformer.wte.weight"}  # also the head, which is no site here
    for name, (value, index) in handle.entries().items():
        if name not in tied and value.numel():
            same(value.grad, plain.get_parameter(name).grad.flatten()[index.long()])


def test_the_backward_pass_keeps_no_second_copy_of_the_weight():
    layer, saved = nn.Linear(64, 32), []
    attach(model := nn.Sequential(layer), SAFT(density=0.01), "*")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(torch.randn(3, 64))
    large = [t for t in saved if t.numel() == 64 * 32]
    assert all(t.data_ptr() == layer.weight.data_ptr() for t in large)


def test_tied_weights_are_told_apart_by_merging():
    model = llama(tied=True)
    handle = attach(model, SAFT(density=0.01), Sites("*embed_tokens", kinds=("embedding",)))
    shaken(handle)
    assert handle.config_changes() == {"tie_word_embeddings": False}
    merged = handle.merged()
    assert torch.equal(merged["lm_head.weight"], model.lm_head.weight)
    assert not torch.equal(merged["model.embed_tokens.weight"], model.model.embed_tokens.weight)


def test_state_holds_positions_and_values_only_and_fits_a_handle_of_other_lengths():
    model, fresh = llama(), llama()
    handle = calibrated(model, density=0.004)
    shaken(handle)
    state = handle.state()
    count = handle.describe()["trained"]
    assert sum(t.numel() for t in state.values()) == 2 * count
    again = attach(fresh, SAFT(density=0.004))
    assert any(again.state()[n].shape != t.shape for n, t in state.items())
    again.load(state)
    assert torch.equal(logits(fresh), logits(model))
    assert {id(p) for p in fresh.parameters() if p.requires_grad} == {id(p) for _, p in again.named_parameters()}
    third = llama()
    both = Several([attach(third, SAFT(density=0.004)), attach(third, NeuroAda(), "lm_head")])
    both.load({**state, **both.handles[1].state()})
    assert torch.equal(logits(third), logits(model))


def test_a_state_that_does_not_fit_changes_nothing():
    model = llama(layers=1)
    handle = attach(model, SAFT(density=0.01))
    shaken(handle)
    state, before = {k: v.clone() for k, v in handle.state().items()}, logits(model)
    name = "model.layers.0.mlp.up_proj.weight"
    index, value = state[f"{name}_index"], state[f"{name}_value"]
    for broken, text in (
        ({f"{name}_index": index[:-1]}, "values but"),
        ({f"{name}_index": torch.zeros_like(index)}, "a position given twice"),
        ({f"{name}_index": index + 32 * 48}, "with 1536 entries"),
        ({f"{name}_value": value[None]}, "instead of"),
        ({"other": value}, "foreign 'other'"),
    ):
        with pytest.raises(CheckpointError, match=text):
            handle.load({**state, **broken})
        assert torch.equal(logits(model), before)


def test_a_foreign_loop_chooses_by_hand_and_faults_are_named():
    model = llama(layers=1)
    logits(model).square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if n.endswith("q_proj.weight")}
    before = bits(model)
    with attach(model, SAFT(density=0.01), "*q_proj") as handle:
        handle.choose(strongest(gradients, 0.01))
        assert handle.describe()["trained"] == math.ceil(0.01 * 32 * 32)
        with pytest.raises(Refused, match="distinct positions below 1024"):
            handle.choose({"model.layers.0.self_attn.q_proj.weight": torch.tensor([1, 1])})
        with pytest.raises(Refused, match="parameters of its sites"):
            handle.choose({"lm_head.weight": torch.tensor([1])})
    assert all(torch.equal(t, before[n]) for n, t in bits(model).items())
    with pytest.raises(Refused, match="sites of kind"):
        attach(nn.Sequential(nn.Bilinear(2, 2, 2)), SAFT(), Sites("*", kinds=("other",)))


def test_a_run_calibrates_once_and_resumes(tmp_path):
    """In the engine: the strongest entries of its own first batches train, and a checkpoint gives them back."""
    from luthier.recipes.build import prepare
    from luthier.recipes.recipe import parse
    from luthier.train.loop import Loop

    plain = {"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 3,
             "adapt": {"saft": {"density": 0.002, "batches": 2}}, "train": {"steps": 4, "batch": 4, "save_every": 2}}  # fmt: skip

    def job(steps: int):
        made = prepare(parse(plain))
        made.job.out = tmp_path
        loop = Loop(made.job)
        loop.steps = steps
        return made, loop

    whole, loop = job(4)
    loop.run()
    want = whole.policy.attached.state()
    assert loop.cost()["forwards_calibration"] > 0
    import shutil

    for kept in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        shutil.rmtree(kept)
    half, loop = job(4)
    loop.run(resume=True)
    got = half.policy.attached.state()
    assert all(torch.equal(got[n], want[n]) for n in want)


@pytest.mark.parametrize(
    "adapt", [{"saft": {"density": 0.01}}, {"spiel": {"density": 0.01}}, {"s2ft": {"choose": "weight"}}]
)
def test_a_plan_knows_how_much_trains(adapt: dict[str, dict[str, object]]):
    """On shapes without numbers the same number of values is attached as in a run."""
    from luthier.recipes.build import prepare
    from luthier.recipes.plan import plan
    from luthier.recipes.recipe import parse

    recipe = parse({"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "adapt": adapt,
                    "train": {"steps": 2, "batch": 4}})  # fmt: skip
    assert plan(recipe).trained == prepare(recipe).policy.attached.describe()["trained"]
