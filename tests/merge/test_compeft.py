from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import ModelError, Refused
from luthier.merge._golomb import Coded, decode, encode, entropy, parameter
from luthier.merge.average.soup import Soup
from luthier.merge.executor import merge_folders, merge_tensors
from luthier.merge.task_vectors.compeft import ComPEFT, as_delta, best, load, save, ternarise
from luthier.merge.task_vectors.task_arithmetic import TaskArithmetic
from tests.merge.tiny import F64, close, equal, near, state, write
from tests.tolerance import same


def vector(n=1000, seed=0, dtype=F64):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def loop(values, density, alpha):
    """Slow reference: sort by magnitude, the earlier of equals first."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(order[: round(density * len(values))])
    return [alpha * deviation * math.copysign(1, v) if i in kept and v != 0 else 0.0 for i, v in enumerate(values)]


@pytest.mark.parametrize("density", [0.001, 0.05, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("parts", [1, 7])
def test_equals_the_loop_however_the_vector_is_cut(density, parts):
    tau = vector()
    names = {str(i): c for i, c in enumerate(tau.chunk(parts))}
    signs, scale = ternarise(names, density, alpha=2.0)
    assert {v for s in signs.values() for v in s.tolist()} <= {-1, 0, 1}
    got = torch.cat([scale * s.double() for s in signs.values()])
    same(got, torch.tensor(loop(tau.tolist(), density, 2.0), dtype=F64))
    assert int((got != 0).sum()) == round(density * 1000)
    assert (got * tau >= 0).all()


def test_equal_magnitudes_are_taken_in_order_and_zeros_have_no_sign():
    tau = {"a": torch.tensor([1.0, -1.0, 1.0]), "b": torch.tensor([-1.0, 1.0, 0.0])}
    signs, _ = ternarise(tau, 4 / 6)
    assert [s.tolist() for s in signs.values()] == [[1, -1, 1], [-1, 0, 0]]
    assert ternarise({"a": torch.tensor([0.0, 2.0, 0.0, 0.0])}, 0.75)[0]["a"].tolist() == [0, 1, 0, 0]
    assert ternarise({"a": vector(8)}, 0.01)[0]["a"].count_nonzero() == 0


def test_it_agrees_with_the_authors_rule_without_ties():
    """Threshold at the k-th largest magnitude, deviation of the whole vector."""
    tau = vector(500, 3, torch.float32)
    signs, scale = ternarise({"w": tau}, 0.2, alpha=1.5)
    threshold = tau.abs().kthvalue(500 - 100 + 1).values
    same(scale * signs["w"].float(), 1.5 * tau.std() * tau.sign() * (tau.abs() >= threshold))


# ------------------------------------------------------------------------------------------- codes and files
def codewords(signs):
    """The ordinary Golomb code, bit by bit, as one string: the number of bits to reach."""
    m = parameter(np.count_nonzero(signs) / len(signs))
    width = math.ceil(math.log2(m)) if m > 1 else 0
    out, run = "", 0
    for s in signs:
        if s == 0:
            run += 1
            continue
        q, r = divmod(run, m)
        out += "1" * q + "0"
        if m > 1:
            short = 2**width - m
            out += (
                format(r, f"0{width - 1}b")
                if r < short and width > 1
                else format(r + short, f"0{width}b")
                if r >= short
                else ""
            )
        out, run = out + ("1" if s < 0 else "0"), 0
    return len(out)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 0, 0, 0, 1]), max_size=200), st.integers(0, 60))
def test_codes_are_lossless(values, zeros):
    signs = np.array(values + [0] * zeros, np.int8)
    coded = encode(signs)
    assert np.array_equal(decode(coded), signs)
    if np.count_nonzero(signs):
        assert coded.bits - codewords(signs) in range(29)


@pytest.mark.parametrize("density", [0.002, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9])
def test_bits_are_near_the_entropy(density):
    rng = np.random.default_rng(0)
    n = 60_000
    signs = np.zeros(n, np.int8)
    signs[rng.choice(n, round(density * n), replace=False)] = 1
    signs *= rng.choice(np.array([-1, 1], np.int8), n)
    coded = encode(signs)
    assert np.array_equal(decode(coded), signs)
    bound = n * entropy(density)
    assert bound - 200 <= coded.bits
    assert coded.bits <= (1.04 if density <= 0.5 else 1.4) * bound + 32


@pytest.mark.parametrize("density", [0.003, 0.02, 0.3, 0.45])
def test_the_divisor_is_the_best_of_all(density):
    def expected(m):
        """Mean bits of a run's code, runs being geometric."""
        width, total, keep = (m - 1).bit_length(), 0.0, 1.0
        for run in range(4000):
            q, r = divmod(run, m)
            total += density * keep * (q + 1 + (width - (r < 2**width - m)))
            keep *= 1 - density
        return total

    assert expected(parameter(density)) == min(expected(m) for m in range(1, 2 * parameter(density) + 4))


def test_a_file_gives_back_scale_and_signs_and_is_small(tmp_path):
    deltas = {"a.weight": vector(6000).view(60, 100), "b": vector(77, 2), "none": torch.zeros(0, 3)}
    signs, scale = ternarise(deltas, 0.05, alpha=0.3)
    bits = save(tmp_path / "e.safetensors", signs, scale)
    again, size = load(tmp_path / "e.safetensors")
    assert size == scale
    assert equal(again, signs)
    assert bits <= 1.04 * 6077 * entropy(0.05) + 32
    assert (tmp_path / "e.safetensors").stat().st_size < bits / 8 + 800


def test_damaged_and_foreign_files_are_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "e.safetensors"
    save(path, *ternarise({"a": vector()}, 0.1))
    with safe_open(str(path), framework="pt") as file:
        told = file.metadata()
    streams = load_file(str(path))
    for change in (
        {"heads": streams["heads"][:-1]},
        {"quotients": streams["quotients"][:4]},
        {"signs": streams["signs"][:0]},
    ):
        save_file({**streams, **change}, str(path), metadata=told)
        with pytest.raises(ModelError, match="damaged"):
            load(path)
    for broken in ({"format": "x"}, {}, {**told, "head": "{"}):
        save_file(streams, str(path), metadata=broken or None)
        with pytest.raises(ModelError):
            load(path)
    with pytest.raises(ModelError):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(ModelError, match="places below 3"):
        decode(Coded(3, 1, 1, np.packbits([1, 1, 1, 1, 0]), *(np.zeros(n, np.uint8) for n in (0, 0, 1))))


# ------------------------------------------------------------------------------------------- the merge
def of(base, model):
    return {n: model[n] - v for n, v in base.items() if v.is_floating_point()}


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_a_merge_adds_the_compressed_difference(density):
    base = state(0, dtype=F64)
    models = [near(base, 1), near(base, 2)]
    got = merge_tensors(ComPEFT(density=density, alpha=1.5), base, models)
    want = dict(base)
    for model in models:
        signs, scale = ternarise(of(base, model), density, 1.5)
        want |= {n: want[n] + scale * s.double() for n, s in signs.items()}
    close(got, want, 1e-9, 1e-12)


def test_an_inner_rule_merges_the_compressed_models_and_files_are_models_of_a_merge(tmp_path):
    base = state(0)
    models = [near(base, 1), near(base, 2)]
    deltas = []
    for i, model in enumerate(models):
        save(tmp_path / f"{i}.safetensors", *ternarise({n: d.double() for n, d in of(base, model).items()}, 0.3))
        deltas.append(as_delta(tmp_path / f"{i}.safetensors"))
    close(
        merge_tensors(ComPEFT(density=0.3, inner=Soup()), base, models), merge_tensors(Soup(), base, deltas), 1e-5, 1e-6
    )
    close(merge_tensors(ComPEFT(density=0.3), base, models), merge_tensors(TaskArithmetic(), base, deltas), 1e-5, 1e-6)


def test_folders_give_the_same_bits_and_alpha_zero_the_base(tmp_path):
    base = state(0)
    model = near(base, 1)
    folders = [write(tmp_path / "base", base), write(tmp_path / "one", model, shards=3)]
    merge_folders(ComPEFT(density=0.2), folders[0], folders[1:], tmp_path / "out")
    from safetensors.torch import load_file

    assert equal(
        load_file(str(tmp_path / "out" / "model.safetensors")), merge_tensors(ComPEFT(density=0.2), base, [model])
    )
    assert equal(merge_tensors(ComPEFT(alpha=0.0), base, [model]), base)


def test_a_single_tensor_is_compressed_by_itself():
    from luthier.core import Site

    base, delta = vector(50, 1), vector(50, 2)
    got = ComPEFT(density=0.2)(base, [delta], Site("w", "linear"))
    signs, scale = ternarise({"w": delta}, 0.2)
    same(got, base + scale * signs["w"].double())


def test_the_best_setting_is_found_by_score():
    deltas = {"w": vector(200)}
    signs, deviation = ternarise(deltas, 0.3)
    target = 2.0 * deviation * signs["w"].double()
    found = best(deltas, lambda d: -float((d["w"] - target).square().sum()), (0.1, 0.3), (1.0, 2.0, 3.0))
    assert found == (0.3, 2.0)


def test_faults():
    base = state(0)
    with pytest.raises(Refused, match="at least one model"):
        merge_tensors(ComPEFT(), base, [])
