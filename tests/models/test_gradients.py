from __future__ import annotations

import pytest
import torch

from luthier.core.errors import NonFinite
from luthier.models.gradients import Sketch, projected_gradients
from luthier.models.language import LanguageModule
from luthier.train.rollout import Sampled
from tests.tolerance import same

ROWS = [Sampled((1, 5, 6, 7), (0, 0, 1, 1)), Sampled((1, 8, 9), (0, 1, 1)), Sampled((1, 5, 6, 7), (0, 0, 1, 1))]


@pytest.fixture(scope="module")
def module():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return LanguageModule(LlamaForCausalLM(config).double())


def gradient(module, row):
    """Slow reference: the whole gradient by plain cross-entropy over logits."""
    module.model.zero_grad()
    ids = torch.tensor([row.ids])
    log_p = module.model(input_ids=ids).logits.log_softmax(-1)[0]
    terms = [log_p[t - 1, row.ids[t]] for t in range(1, len(row.ids)) if row.mask[t]]
    (-sum(terms) / len(terms)).backward()
    made = [p.grad.clone() for p in module.model.parameters()]
    module.model.zero_grad(set_to_none=True)
    return made


def test_it_is_the_projection_of_the_whole_gradient(module):
    got = projected_gradients(module, ROWS, dim=64, seed=3)
    shapes = [p.shape for p in module.model.parameters()]
    sketch = Sketch(shapes, 64, 3)
    for row, found in zip(ROWS, got, strict=True):
        same(found, sketch(gradient(module, row)))
    assert torch.equal(got[0], got[2])


def test_the_projection_is_the_matrix_of_places_and_signs(module):
    shapes = [torch.Size((3, 2)), torch.Size((4,))]
    sketch = Sketch(shapes, 5, 1)
    gradients = [torch.arange(6.0).view(3, 2), -torch.arange(4.0)]
    matrix = torch.zeros(5, 10)
    places, signs = torch.cat(sketch.places), torch.cat(sketch.signs)
    for j in range(10):
        matrix[int(places[j]), j] = float(signs[j])
    same(sketch(gradients), matrix @ torch.cat([g.flatten() for g in gradients]))
    same(sketch([None, gradients[1]]), matrix[:, 6:] @ gradients[1])


def test_inner_products_are_kept_on_average():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, generator=g), torch.randn(300, generator=g)
    b = b + 0.5 * a
    found = []
    for seed in range(300):
        sketch = Sketch([torch.Size((300,))], 64, seed)
        found.append(float(sketch([a]) @ sketch([b])))
    mean, spread = sum(found) / 300, torch.tensor(found).std()
    assert abs(mean - float(a @ b)) < 4 * float(spread) / 300**0.5
    assert float(spread) ** 2 < 1.5 * 2 / 64 * float(a.square().sum() * b.square().sum())


def test_flags_and_mode_are_put_back_and_nothing_is_left(module):
    module.train()
    first = next(module.model.parameters())
    first.requires_grad_(False)
    with torch.no_grad():
        projected_gradients(module, ROWS[:1], dim=4)
    assert module.training
    assert not first.requires_grad
    assert all(p.grad is None for p in module.model.parameters())
    first.requires_grad_(True)
    module.eval()


def test_faults(module):
    with pytest.raises(ValueError, match="at least one dimension; got 0"):
        projected_gradients(module, ROWS, dim=0)
    broken = next(module.model.parameters())
    kept = broken.detach().clone()
    with torch.no_grad():
        broken[5] = torch.nan
    with pytest.raises(NonFinite, match="others in row 1"):
        projected_gradients(module, ROWS, dim=4)
    with torch.no_grad():
        broken.copy_(kept)
