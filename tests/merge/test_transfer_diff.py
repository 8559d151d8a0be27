from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from luthier.core.errors import ModelError, Refused
from luthier.merge._sources import AdapterDelta
from luthier.merge.executor import merge_folders, merge_tensors
from luthier.merge.task_vectors.task_arithmetic import TaskArithmetic
from luthier.merge.task_vectors.transfer_diff import TransferDiff, barrier, transfer_diff
from tests.merge.test_merge_adapters import adapter, model
from tests.merge.tiny import F64, close, equal, near, state, write
from tests.tolerance import same


def versions(dtype=F64):
    """(target base, source base, source tuned)."""
    source = state(0, dtype=dtype)
    return near(source, 1), source, near(source, 2)


@pytest.mark.parametrize("scale", [1.0, 0.4, -1.0])
def test_equals_the_loop(scale):
    target, source, tuned = versions()
    got = merge_tensors(TransferDiff(scale=scale), target, [source, tuned])
    for name, value in target.items():
        if not value.is_floating_point():
            assert torch.equal(got[name], value)
            continue
        triples = zip(value.flatten().tolist(), source[name].flatten().tolist(), tuned[name].flatten().tolist())
        want = torch.tensor([b + scale * (t - s) for b, s, t in triples], dtype=F64)
        same(got[name].flatten(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_limits(dtype):
    target, source, tuned = versions(dtype)
    assert equal(merge_tensors(TransferDiff(), source, [source, tuned]), tuned)
    assert equal(merge_tensors(TransferDiff(scale=0.0), target, [source, tuned]), target)
    assert equal(merge_tensors(TransferDiff(), target, [source, source]), target)


def test_the_source_s_tuned_model_comes_back_even_where_sums_would_round():
    base, tuned = torch.tensor([1e20]), torch.tensor([1e-20])
    assert torch.equal(transfer_diff(base, base, tuned), tuned)


def test_there_and_back_again():
    target, source, tuned = versions()
    ported = merge_tensors(TransferDiff(), target, [source, tuned])
    close(merge_tensors(TransferDiff(), source, [target, ported]), tuned, 1e-9, 1e-12)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_of_a_lora_adapter_the_difference_is_scale_times_b_a(tmp_path):
    from safetensors.torch import load_file

    merged = adapter(tmp_path / "lora", target_modules=["q_proj"])  # rank 3, alpha 5
    source = model().state_dict()
    target = near(source, 3)
    alone = merge_tensors(TransferDiff(), target, [AdapterDelta.from_lora(tmp_path / "lora")])
    saved = load_file(str(tmp_path / "lora" / "adapter_model.safetensors"))
    for name, value in target.items():
        factors = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{factors}A.weight" in saved:
            product = 5 / 3 * saved[f"{factors}B.weight"].double() @ saved[f"{factors}A.weight"].double()
            same(alone[name], (value.double() + product).float())
        else:
            assert torch.equal(alone[name], value)
    close(merge_tensors(TransferDiff(), target, [source, merged]), alone, 1e-5, 1e-6)


def test_folders_give_the_same(tmp_path):
    target, source, tuned = versions(torch.float32)
    folders = [write(tmp_path / n, t) for n, t in (("target", target), ("source", source), ("tuned", tuned))]
    merge_folders(TransferDiff(scale=0.5), folders[0], folders[1:], tmp_path / "out")
    from safetensors.torch import load_file

    got = load_file(str(tmp_path / "out" / "model.safetensors"))
    assert equal(got, merge_tensors(TransferDiff(scale=0.5), target, [source, tuned]))


def test_the_barrier_is_zero_at_the_ends_and_on_a_line_and_rises_between_two_valleys():
    one, other = {"w": torch.tensor([-1.0]), "n": torch.arange(2)}, {"w": torch.tensor([1.0]), "n": torch.arange(2)}
    got = barrier(lambda w: float((w["w"] ** 2 - 1) ** 2), one, other, points=5)
    assert got == pytest.approx((0.0, 0.5625, 1.0, 0.5625, 0.0))
    assert barrier(lambda w: float(3 * w["w"] + 1), one, other) == pytest.approx((0.0,) * 11, abs=1e-6)
    with pytest.raises(ValueError, match="at least 3 points; got 2"):
        barrier(lambda w: 0.0, one, other, points=2)


def test_the_barrier_of_a_network_against_plain_interpolation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(20, 2, generator=g, dtype=F64), torch.randn(20, 1, generator=g, dtype=F64)
    models = [{k: torch.randn(v.shape, generator=g, dtype=F64) for k, v in net.state_dict().items()} for _ in range(2)]

    def loss(weights):
        return float((functional_call(net, dict(weights), (x,)) - y).square().mean())

    got = barrier(loss, *models, points=3)
    half = {k: (v + models[1][k]) / 2 for k, v in models[0].items()}
    assert got[1] == pytest.approx(loss(half) - (loss(models[0]) + loss(models[1])) / 2)


def test_faults():
    target, source, tuned = versions(torch.float32)
    with pytest.raises(Refused, match="a model without its base"):
        merge_tensors(TransferDiff(), target, [tuned])
    with pytest.raises(Refused, match="an adapter beside another model"):
        merge_tensors(TransferDiff(), target, [source, AdapterDelta.added("a", {"model.norm.weight": torch.ones(4)})])
    with pytest.raises(Refused, match="3 models"):
        merge_tensors(TransferDiff(), target, [source, tuned, tuned])
    with pytest.raises(ModelError, match="vocabulary"):
        merge_tensors(TransferDiff(), state(1, vocab=8), [source, tuned])
    assert equal(
        merge_tensors(TaskArithmetic(), source, [tuned]), merge_tensors(TransferDiff(), source, [source, tuned])
    )
