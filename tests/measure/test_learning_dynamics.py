"""learning_dynamics: the first-order prediction against explicit kernels and real steps, squeezing, and readings of fakes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.measure.diagnose.learning_dynamics import LearningDynamics, squeezed
from luthier.objectives.preference.dpo import dpo
from luthier.ops.dynamics import predicted_change, residual_dpo, residual_nll, tangent_kernel
from luthier.recipes.export import plain_subject
from tests.adapt.tiny import llama
from tests.measure.fakes import Fake, fixed
from tests.tolerance import same

F64 = torch.float64
V, D = 6, 4


@pytest.fixture
def linear():
    """W (V, D) and the features of an observed and a learned context."""
    g = torch.Generator().manual_seed(0)
    w, x_o, x_u = (torch.randn(*s, generator=g, dtype=F64) for s in ((V, D), (D,), (D,)))
    return {"w": w}, (lambda p: p["w"] @ x_o), (lambda p: p["w"] @ x_u), x_o, x_u


def test_a_linear_softmax_has_the_kernel_of_its_features(linear):
    parameters, observed, learned, x_o, x_u = linear
    same(tangent_kernel(observed, learned, parameters), (x_o @ x_u) * torch.eye(V, dtype=F64))


def test_the_prediction_is_minus_lr_a_k_g_in_loops(linear):
    parameters, observed, learned, _, _ = linear
    residual = residual_nll(learned(parameters), torch.tensor(2))
    pi, kernel = observed(parameters).softmax(-1), tangent_kernel(observed, learned, parameters)
    want = torch.zeros(V, dtype=F64)
    for i in range(V):
        for j in range(V):
            for k in range(V):
                want[i] += -0.1 * ((1.0 if i == j else 0.0) - pi[j]) * kernel[j, k] * residual[k]
    same(predicted_change(observed, learned, parameters, residual, 0.1), want)


def errors(parameters, observed, learned, loss, residual, rates=(0.02, 0.01, 0.005)):
    """Largest error of the prediction at each learning rate."""
    live = {k: v.clone().requires_grad_() for k, v in parameters.items()}
    gradients = torch.autograd.grad(loss(live), list(live.values()), allow_unused=True)
    out = []
    for lr in rates:
        moved = {k: v if g is None else v - lr * g for (k, v), g in zip(parameters.items(), gradients, strict=True)}
        true = observed(moved).log_softmax(-1) - observed(parameters).log_softmax(-1)
        out.append(float((predicted_change(observed, learned, parameters, residual, lr) - true).abs().max()))
    return out


def test_halving_the_rate_quarters_the_error_on_a_linear_softmax(linear):
    parameters, observed, learned, _, _ = linear
    got = errors(parameters, observed, learned, lambda p: -learned(p).log_softmax(-1)[2],
                 residual_nll(learned(parameters), torch.tensor(2)))  # fmt: skip
    assert got[0] / got[1] == pytest.approx(4, rel=0.05)
    assert got[1] / got[2] == pytest.approx(4, rel=0.05)


def test_and_on_a_transformer_with_a_dpo_step():
    model = llama(layers=1).double().eval()
    model.set_attn_implementation("eager")
    parameters = {k: 3 * v.detach() for k, v in model.named_parameters()}
    pair = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 6, 7, 5]])

    def logits(p, ids):
        return functional_call(model, p, (ids,), {"use_cache": False}).logits[:, 1:-1]

    def learned(p):
        z = logits(p, pair)
        return z[0], z[1]

    def observed(p):
        return logits(p, torch.tensor([[1, 9, 8, 7]]))[0]

    def margin(p):
        total = [z.log_softmax(-1).gather(-1, y[:, None]).sum() for z, y in zip(learned(p), pair[:, 2:], strict=True)]
        return total[0] - total[1]

    with torch.no_grad():
        residual = residual_dpo(learned(parameters), (pair[0, 2:], pair[1, 2:]), 0.5 * margin(parameters), 0.5)
    zero = torch.zeros((), dtype=F64)
    got = errors(parameters, observed, learned, lambda p: dpo(margin(p), zero, zero, zero, beta=0.5), residual,
                 rates=(4e-4, 2e-4, 1e-4))  # fmt: skip
    assert got[0] / got[1] == pytest.approx(4, rel=0.2)
    assert got[1] / got[2] == pytest.approx(4, rel=0.2)


def test_lowering_an_unlikely_class_feeds_the_most_likely_one():
    """1,000 random softmaxes: the odds of the most likely class against any class never fall."""
    for seed in range(1000):
        g = torch.Generator().manual_seed(seed)
        z = 3 * torch.randn(8, generator=g, dtype=F64)
        top = int(z.argmax())
        down = int(z.argsort()[int(torch.randint(7, (1,), generator=g))])
        after = z + 0.5 * residual_nll(z, torch.tensor(down))
        for i in range(8):
            assert float((after[top] - after[i]) - (z[top] - z[i])) >= -1e-12


ROWS = [{"prompt": p, "chosen": "a", "rejected": "b", "paraphrase": f"{p}?"} for p in "pq"]


def test_readings_of_a_squeezed_model():
    before = {"a": 0.2, "b": 0.3, "c": 0.5}
    after = {"a": 0.1, "b": 0.05, "c": 0.85}
    start = Fake(lambda p: before)
    got = {r.name: r for r in LearningDynamics()(Fake(lambda p: after, start), ROWS, MeasureContext())}
    # two tokens each: the word, and an end that is certain
    assert got["dynamics_chosen"].value == pytest.approx(math.log(0.1 / 0.2) / 2)
    assert got["dynamics_rejected"].value == pytest.approx(math.log(0.05 / 0.3) / 2)
    assert got["dynamics_top"].value == pytest.approx(math.log(0.85 / 0.5) / 2)
    assert got["dynamics_squeezed"].items == (1.0, 1.0)
    assert got["dynamics_paraphrase"].value == got["dynamics_chosen"].value
    still = {r.name: r.value for r in LearningDynamics()(start, ROWS, MeasureContext())}
    assert set(still.values()) == {0.0}
    bare = [{k: v for k, v in r.items() if k != "paraphrase"} for r in ROWS]
    assert len(list(LearningDynamics()(start, bare, MeasureContext()))) == 4


def test_squeezed_needs_both():
    assert squeezed(torch.tensor([-1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0])).tolist() == [1, 0, 0]


def test_of_a_real_subject():
    subject = plain_subject("lab:language")
    (table,) = subject.token_table(["sort b a"], ["a b"])
    assert torch.equal(table.top_logp[table.rank == 1], table.logp[table.rank == 1])
    assert (table.top_logp >= table.logp).all()


def test_faults():
    whole = fixed({"p": {"a": 1.0}})
    plain = type("Plain", (), {"generate": whole.generate, "logp": whole.logp, "base": lambda self: self})()
    with pytest.raises(DataError, match="'tokens'"):
        list(LearningDynamics()(plain, ROWS, MeasureContext()))
    with pytest.raises(DataError, match="row 0 requires the field 'rejected'"):
        list(LearningDynamics()(whole, [{"prompt": "p", "chosen": "a"}], MeasureContext()))
