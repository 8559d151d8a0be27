"""lt_sft: two phases beside a plain loop, exact composition, and its limits."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from luthier.adapt.attach import attach
from luthier.adapt.sparse.lt_sft import LTSFT, combined
from luthier.core import Sites
from luthier.core.errors import CheckpointError
from tests.adapt.sparse_tools import GivenLosses, trained
from tests.adapt.test_saft import changed
from tests.adapt.tiny import bits, gpt2, llama, logits, shaken
from tests.tolerance import same

F64 = torch.float64


def two_phases(model, l1: float = 0.0, density: float = 0.02, steps: int = 4):
    """A handle after its first phase, on losses that differ by step."""
    handle = attach(model, LTSFT(density=density, steps=steps, lr=0.02, l1=l1))
    losses = [lambda t=t: (logits(model) - t).square().mean() + (handle.penalty() or 0.0) for t in range(steps)]
    handle.calibrate(GivenLosses(losses))
    return handle


def test_positions_are_those_a_plain_full_tuning_moves_most_and_the_base_is_rewound():
    """Slow reference: AdamW with linear decay on the weights themselves."""
    model = gpt2().double()
    plain, before, start = copy.deepcopy(model), bits(model), logits(model)
    handle = two_phases(model)
    names = set(handle.weights())
    for n, p in plain.named_parameters():
        p.requires_grad_(n in names)
    search = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=0.02, weight_decay=0)
    for step in range(4):
        search.zero_grad()
        (logits(plain) - step).square().mean().backward()
        search.param_groups[0]["lr"] = 0.02 * (1 - step / 4)
        search.step()
    count = math.ceil(0.02 * sum(before[n].numel() for n in names))
    moved = [(-abs(v), n, at) for n in sorted(names)
             for at, v in enumerate((plain.get_parameter(n).detach() - before[n]).flatten().tolist())]  # fmt: skip
    want = {(n, at) for _, n, at in sorted(moved)[:count]}
    got = {(n, at) for n, (_, index) in handle.entries().items() for at in index.tolist()}
    assert len(got) == count
    assert len(got & want) >= 0.99 * count  # rounding may swap entries at the edge
    assert torch.equal(logits(model), start)
    handle.detach()
    assert all(torch.equal(t, before[n]) for n, t in bits(model).items())


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_exactly_k_entries_change(optimiser: type[torch.optim.Optimizer]):
    model = llama()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = two_phases(model)
    trained(model, logits, optimiser, lr=0.05, weight_decay=0.1)
    total = sum(before[n].numel() for n in handle.weights())
    handle.merge_into_model()
    assert sum(int(m.sum()) for m in changed(model, before).values()) == math.ceil(0.02 * total)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_density_one_is_full_training_in_the_second_phase(optimiser: type[torch.optim.Optimizer]):
    model = gpt2().double()
    plain = copy.deepcopy(model)
    handle = two_phases(model, density=1.0)
    for n, p in plain.named_parameters():
        p.requires_grad_(n in handle.weights())
    for one in (model, plain):
        trained(one, logits, optimiser, lr=0.01)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-7, atol=1e-8)


def states(count: int) -> list[dict[str, torch.Tensor]]:
    out = []
    for seed in range(count):
        handle = attach(llama().double(), LTSFT(density=0.05), seed=seed)
        shaken(handle, seed=seed)
        out.append(handle.state())
    return out


def test_composition_is_the_sum_of_dense_changes_and_commutes():
    a, b = states(2)
    ab, ba = combined(a, b), combined(b, a)
    assert all(torch.equal(ab[n], ba[n]) for n in ab)
    model = llama().double()
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    want = {n: p.clone() for n, p in base.items()}
    for state in (a, b):
        for name in [n.removesuffix("_index") for n in state if n.endswith("_index")]:
            want[name].view(-1)[state[f"{name}_index"].long()] += state[f"{name}_value"]
    start, handle = logits(model), attach(model, LTSFT(density=0.05))
    handle.load(ab)
    for name, value in handle.merged().items():
        same(value, want[name])
    assert not torch.equal(logits(model), start)
    handle.detach()
    assert torch.equal(logits(model), start)
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters())


def test_taking_a_change_away_again_leaves_nothing_and_disjoint_ones_may_come_in_any_order():
    (a,) = states(1)
    minus = {n: -t if n.endswith("_value") else t for n, t in a.items()}
    assert all(not t.any() for n, t in combined(a, minus).items() if n.endswith("_value"))
    name = "w"
    three = [{f"{name}_index": torch.arange(3) * 3 + i, f"{name}_value": torch.rand(3)} for i in range(3)]
    one, other = combined(*three), combined(three[2], three[0], three[1])
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_states_of_other_sites_are_refused():
    (a,) = states(1)
    fewer = {n: t for n, t in a.items() if "q_proj" not in n}
    with pytest.raises(CheckpointError, match="states of the same sites"):
        combined(a, fewer)


def test_the_pull_is_the_mean_size_of_the_change():
    model = llama(layers=1)
    handle = attach(model, LTSFT(density=0.01, l1=0.3), Sites("*q_proj"))
    shaken(handle)
    value, index = handle.entries()["model.layers.0.self_attn.q_proj.weight"]
    same(handle.penalty(), torch.tensor(0.3 * sum(abs(v) for v in value.tolist()) / 1024))
    assert len(index) == 11
    assert attach(llama(), LTSFT()).penalty() is None
    assert two_phases(llama(), l1=0.5).describe()["trained"] > 0


def test_it_runs_in_the_engine_beside_a_regulariser():
    from luthier.recipes.build import prepare
    from luthier.recipes.recipe import parse
    from luthier.train.loop import Loop

    made = prepare(parse({"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 1,
                          "adapt": {"lt_sft": {"density": 0.001, "steps": 3, "lr": 1e-3, "l1": 0.1}},
                          "regularise": ["neftune"], "train": {"steps": 2, "batch": 4}}))  # fmt: skip
    loop = Loop(made.job)
    loop.run()
    cost = loop.cost()
    assert cost["forwards_calibration"] == 3
    assert made.policy.attached.describe()["trained"] > 0
