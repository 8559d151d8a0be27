"""spiel: drop and grow beside loops, Adam's moments of newcomers, exact resume, and its limits."""

from __future__ import annotations

import math
import random
import shutil

import pytest
import torch
from torch import nn

from luthier.adapt._sparse import added
from luthier.adapt.attach import attach
from luthier.adapt.sparse._reselect import Reselect, exchange, remap, sm3
from luthier.adapt.sparse.spiel import SpIEL
from luthier.core import Batch, Context
from luthier.core.errors import Refused
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.adapt.tiny import llama, logits
from tests.tolerance import same

F64 = torch.float64


def ctx(step: int, steps: int = 100, **given: object) -> Context:
    return Context(step, steps, 0, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
def test_exchange_equals_the_loop(seed: int):
    draw = random.Random(seed)
    k, candidates, part = draw.randint(1, 8), draw.randint(0, 10), draw.random()
    index, candidate = draw.sample(range(20), k), draw.sample(range(20), candidates)
    value, score = [draw.choice([-1.0, 0.0, 0.5, 2.0]) for _ in index], [draw.random() for _ in candidate]
    dropped = sorted(range(k), key=lambda i: (abs(value[i]), i))[: int(part * k)]
    stay = [index[i] for i in range(k) if i not in dropped]
    ranked = sorted(range(candidates), key=lambda j: -score[j])
    best = [candidate[j] for j in ranked if candidate[j] not in stay][: len(dropped)]
    new = [b for b in best if b not in [index[i] for i in dropped]]
    places = [i for i in dropped if index[i] not in best][: len(new)]
    got = exchange(torch.tensor(value), torch.tensor(index), torch.tensor(candidate, dtype=torch.long),
                   torch.tensor(score), part)  # fmt: skip
    assert [t.tolist() for t in got] == [places, new]
    after = list(index)
    for place, position in zip(places, new, strict=True):
        after[place] = position
    assert len(set(after)) == k


def test_sm3_equals_the_loop():
    g = torch.Generator().manual_seed(0)
    row, column = torch.zeros(4, dtype=F64), torch.zeros(3, dtype=F64)
    rows, columns = [0.0] * 4, [0.0] * 3
    for _ in range(5):
        index, gradient = torch.randperm(12, generator=g)[:5], torch.randn(5, dtype=F64, generator=g)
        sm3(row, column, index, gradient)
        seen = [
            min(rows[i // 3], columns[i % 3]) + v * v for i, v in zip(index.tolist(), gradient.tolist(), strict=True)
        ]
        for i, s in zip(index.tolist(), seen, strict=True):
            rows[i // 3], columns[i % 3] = max(rows[i // 3], s), max(columns[i % 3], s)
        same(row, torch.tensor(rows, dtype=F64))
        same(column, torch.tensor(columns, dtype=F64))


def test_newcomers_get_corrected_moments_and_the_others_keep_theirs():
    p = nn.Parameter(torch.randn(6, dtype=F64))
    adam = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.99))
    for _ in range(7):
        p.grad = torch.randn(6, dtype=F64)
        adam.step()
    before = {k: t.clone() for k, t in adam.state[p].items()}
    at, first, second = torch.tensor([4, 1]), torch.tensor([0.3, -2.0], dtype=F64), torch.tensor([0.5, 9.0], dtype=F64)
    remap(adam, p, at, first, second)
    state = adam.state[p]
    same(state["exp_avg"][at] / (1 - 0.9**7), first)
    same(state["exp_avg_sq"][at] / (1 - 0.99**7), second)
    rest = torch.tensor([0, 2, 3, 5])
    assert all(torch.equal(state[k][rest], before[k][rest]) for k in ("exp_avg", "exp_avg_sq"))
    assert state["step"] == before["step"]
    remap(adam, p, at, None, None)
    assert not state["exp_avg"][at].any()
    same(state["exp_avg_sq"][at], before["exp_avg_sq"][rest].mean().expand(2))
    remap(torch.optim.SGD([p], lr=0.1), p, at, None, None)  # nothing kept, nothing to do


@pytest.mark.parametrize("grow", ["ag", "ma"])
def test_positions_stay_distinct_and_constant_in_number_and_only_drops_change_the_function(grow):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x, y = torch.randn(20, 9, dtype=F64), torch.randn(20, 3, dtype=F64)
    base = model(x).detach()
    handle = attach(model, SpIEL(density=0.2, grow=grow, every=4, accumulate=2, rate=0.5), "*")
    assert torch.equal(model(x), base)
    assert [len(v) for v, _ in handle.entries().values()] == [math.floor(0.2 * 63), math.floor(0.2 * 21)]
    (hook,) = handle.hooks()
    search = torch.optim.AdamW([p for _, p in handle.named_parameters()], lr=0.05)
    moved = 0
    for step in range(20):
        hook.batch(Batch("", {}, ()), ctx(step, 20))
        search.zero_grad()
        (model(x) - y).square().mean().backward()
        hook.gradients([], ctx(step, 20))
        search.step()
        before = {n: (v.detach().clone(), i.clone()) for n, (v, i) in handle.entries().items()}
        hook.stepped([], at := ctx(step, 20, optimiser=search))
        for name, (value, index) in handle.entries().items():
            was, old = before[name]
            assert len(index.unique()) == len(old)
            w, new = handle.weights()[name], ~torch.isin(index, old)
            gone = ~torch.isin(old, index)
            assert not value[new].any()
            assert int(new.sum()) == int(gone.sum()) <= (1.0 if step == 1 else 0.5) * len(old)
            same(added(w, was, old) - added(w, value, index), added(torch.zeros_like(w), was[gone], old[gone]))
            assert torch.equal(value[~new], was[~gone])
        assert at.changed == 0 or step % 4 == 1
        moved += at.changed
    assert moved > 0
    with handle.disabled():
        assert torch.equal(model(x), base)


def test_ag_takes_the_largest_gradients_at_the_base():
    """Values stay 0 without an optimiser: a first selection finds the k largest |sum of gradients|, its moments are means."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    x = [torch.randn(8, 6, dtype=F64) for _ in range(2)]
    handle = attach(model, SpIEL(density=0.2, every=4, accumulate=2), "*")
    hook = handle.hooks()[0]
    (value, index), (w,) = handle.entries()["0.weight"], handle.weights().values()
    adam = torch.optim.Adam([value], lr=0.0)
    for step in range(2):
        hook.batch(Batch("", {}, ()), ctx(step))
        adam.zero_grad()
        for half in x[step].split(4):  # two micro-batches; the engine then rescales by what it could not know
            model(half).pow(3).sum().backward()
        value.grad.mul_(0.25)
        hook.gradients([], ctx(step))
        adam.step()
        hook.stepped([], ctx(step, optimiser=adam))
    dense = []
    for rows in (x[0], x[1], x[0][:4]):
        leaf = w.detach().clone().requires_grad_(True)
        (rows @ leaf.T).pow(3).sum().backward()
        dense.append(0.25 * leaf.grad.flatten())
    micro = dense[2].abs().argsort(descending=True)[:6]  # candidates of the first micro-batch
    mean, square = (dense[0] + dense[1]) / 2, (dense[0] ** 2 + dense[1] ** 2) / 2
    assert set(micro.tolist()) == set(index.tolist())
    state, new = adam.state[value], ~torch.isin(index, positions_at_the_start())
    same(state["exp_avg"][new] / (1 - 0.9**2), mean[index.long()][new])
    same(state["exp_avg_sq"][new] / (1 - 0.999**2), square[index.long()][new])


def positions_at_the_start() -> torch.Tensor:
    """The positions that the same seed gave at attaching."""
    fresh = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    return attach(fresh, SpIEL(density=0.2), "*").entries()["0.weight"][1]


PLAIN = {"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 3,
         "train": {"steps": 9, "batch": 4, "save_every": 6, "keep": 1}}  # fmt: skip


@pytest.mark.parametrize("grow", ["ag", "ma"])
def test_a_run_stopped_inside_a_selection_resumes_to_the_same_bits(tmp_path, grow: str):
    """Checkpoint after step 6 of selections that end after steps 3, 7: open sums must survive."""

    def loop(out):
        made = prepare(
            parse({**PLAIN, "adapt": {"spiel": {"density": 0.01, "grow": grow, "every": 4, "accumulate": 3}}})
        )
        made.job.out = out
        return made, Loop(made.job)

    whole, running = loop(tmp_path)
    outcome = running.run()
    moves = {r.step: r.changed for r in outcome.trace if r.point == "stepped" and r.changed}
    assert moves.keys() == {2, 6}
    want = {k: v.clone() for k, v in whole.policy.attached.state().items()}
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [k.name for k in kept] == ["step-00000006"]
    again, resumed = loop(tmp_path)
    resumed.run(resume=True)
    got = again.policy.attached.state()
    assert all(torch.equal(got[n], want[n]) for n in want)
    shutil.rmtree(tmp_path / "checkpoints")


def test_a_rate_of_zero_selects_once():
    spiel = SpIEL(rate=0.0, every=3, accumulate=3)
    assert [spiel.part(s, 12) for s in range(6)] == [None, None, 1.0, None, None, 0.0]
    assert exchange(torch.ones(4), torch.arange(4), torch.arange(9), torch.ones(9), 0.0)[0].numel() == 0


def test_faults_are_named(monkeypatch):
    with pytest.raises(ValueError, match="accumulate must not exceed every = 4; got 5"):
        SpIEL(every=4, accumulate=5)
    hook = attach(llama(layers=1), SpIEL()).hooks()[0]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(Refused, match="one process for grow: ag; got 2"):
        hook.start(ctx(0))
    attach(llama(layers=1), SpIEL(grow="ma")).hooks()[0].start(ctx(0))


def test_listening_ends_with_the_run():
    model = llama(layers=1)
    hook: Reselect = attach(model, SpIEL()).hooks()[0]
    hook.batch(Batch("", {}, ()), ctx(0))
    logits(model).square().mean().backward()
    assert hook.seen
    hook.end(ctx(9))
    hook.seen = {}
    logits(model).square().mean().backward()
    assert not hook.seen
