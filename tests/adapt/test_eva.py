"""eva: components, ranks, what calibration changes, saving, and parity with peft."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.adapt._principal import Principal, leading
from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.lowrank.eva import EVA, Search, allocate
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Batch
from luthier.core.errors import CheckpointError, Refused
from tests.adapt.tiny import gpt2, llama, logits, shaken
from tests.tolerance import same

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Batches:
    """Token batches as the engine gives them."""

    seed = 0

    def __init__(self, model: nn.Module, count: int = 6, rows: int = 8, length: int = 12):
        self.model, g = model, torch.Generator().manual_seed(4)
        self.inputs = []
        for _ in range(count):
            ids = torch.randint(0, 40, (rows, length), generator=g)
            mask = (torch.arange(length) < torch.randint(6, length + 1, (rows, 1), generator=g)).long()
            loss = mask * (torch.arange(length) >= 3)
            self.inputs.append({"input_ids": ids, "attention_mask": mask, "loss_mask": loss})
        self.given = 0

    def forwards(self) -> Iterator[Batch]:
        for inputs in self.inputs:
            self.given += 1
            with torch.no_grad():
                self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            yield Batch("text", inputs)

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[int]:
        raise NotImplementedError


def empty(handle: Any) -> None:
    """Give the first site rank 0."""
    site = handle.sites[0].name
    a, b = handle.state()[f"{site}.a"], handle.state()[f"{site}.b"]
    handle.replace(site, {"a": a[:0], "b": b[:, :0]})
    assert site not in {found for found, *_ in handle.low_rank()}


def test_one_batch_gives_the_right_singular_vectors_of_the_centred_rows():
    x = drawn(50, 9)
    one = Principal(4)
    one.add(x)
    _, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    same((one.components @ v[:4].T).abs(), torch.eye(4, dtype=F64))
    same(one.singular, s[:4])
    same(one.ratio, s[:4] ** 2 / (s**2).sum())
    same(one.components @ one.components.T, torch.eye(4, dtype=F64))


def test_batches_give_what_all_rows_give_where_nothing_is_cut_off():
    x = drawn(60, 5) + 3 * drawn(5, seed=1)
    whole, parts = Principal(5), Principal(5)
    whole.add(x)
    for piece in x.split([10, 7, 30, 13]):
        parts.add(piece)
    same(parts.mean, x.mean(0))
    same(parts.ratio, whole.ratio)
    same((parts.components @ whole.components.T).abs(), torch.eye(5, dtype=F64))


def test_rows_of_low_rank_are_followed_exactly_by_few_components():
    x = drawn(60, 3) @ drawn(3, 20, seed=1)
    one = Principal(3)
    for piece in x.split(15):
        one.add(piece)
    _, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    same(one.singular, s[:3])
    same(one.ratio.sum(), torch.ones((), dtype=F64))


def test_wide_rows_are_decomposed_at_random_to_the_same_end():
    x = drawn(1100, 3) @ drawn(3, 1100, seed=1)
    state = torch.get_rng_state()
    s, v = leading(x, 3)
    assert torch.equal(torch.get_rng_state(), state)
    same(s, torch.linalg.svdvals(x)[:3])
    same(v @ v.T, torch.eye(3, dtype=F64))


def test_ranks_are_the_best_of_all_that_fit():
    shares = {k: drawn(4, seed=i).abs().sort(descending=True).values for i, k in enumerate("abc")}
    for budget in range(13):
        ranks = allocate(shares, budget)
        assert sum(ranks.values()) == budget
        got = sum(float(shares[k][:r].sum()) for k, r in ranks.items())
        others = [c for c in itertools.product(range(5), repeat=3) if sum(c) == budget]
        assert (
            got >= max(sum(float(shares[k][:r].sum()) for k, r in zip("abc", c, strict=True)) for c in others) - 1e-12
        )


def test_rho_one_gives_equal_ranks_and_the_pass_ends_when_components_stand_still():
    model = llama()
    batches = Batches(model)
    with attach(model, EVA(rank=3, rho=1.0, tau=0.0)) as handle:
        handle.calibrate(batches)
        assert {a.shape[0] for _, a, _, _ in handle.low_rank()} == {3}
    assert batches.given == 2


def test_calibration_sets_orthonormal_directions_and_ranks_and_leaves_the_base():
    model = llama()
    before = logits(model)
    batches = Batches(model)
    handle = attach(model, EVA(rank=4, rho=2.0, tau=1.0))
    handle.calibrate(batches)
    assert batches.given == 6
    assert torch.equal(logits(model), before)
    state, ranks = handle.state(), {}
    for site in handle.sites:
        a, b = state[f"{site.name}.a"], state[f"{site.name}.b"]
        ranks[site.name] = a.shape[0]
        assert b.shape[1] == a.shape[0] <= 8
        assert not b.any()
        same(a @ a.T, torch.eye(len(a)))
    assert sum(ranks.values()) == 4 * len(ranks)
    assert len(set(ranks.values())) > 1
    named = {n for n, _ in handle.named_parameters()}
    assert named == {f"{s}.{part}" for s, r in ranks.items() if r for part in "ab"}
    q, k = (f"model.layers.0.self_attn.{n}_proj.a" for n in "qk")
    least = min(len(state[q]), len(state[k]))
    assert torch.equal(state[q][:least], state[k][:least])


def test_sites_that_read_one_tensor_are_decomposed_once(monkeypatch):
    model = llama()
    handle = attach(model, EVA(rank=2, rho=1.0), "*self_attn.?_proj,*gate_proj,*up_proj")
    made = []
    monkeypatch.setattr(Principal, "add", lambda self, rows, plain=Principal.add: (made.append(1), plain(self, rows)))
    handle.calibrate(Batches(model, count=1))
    readers = {s.name.rpartition(".")[0].rpartition(".")[0] for s in handle.sites}
    assert len(made) == 3 * len(readers)  # in each block: query, key and value; output; gate and up
    assert len(handle.sites) == 6 * len(readers)


def test_directions_are_those_of_trained_tokens_only():
    model = llama()
    batches = Batches(model, count=1)
    found: list[torch.Tensor] = []
    layer: Any = model.get_submodule("model.layers.0.mlp.down_proj")
    hook = layer.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    next(batches.forwards())
    hook.remove()
    for trained_only, mask in ((True, "loss_mask"), (False, "attention_mask")):
        handle = attach(model, EVA(rank=3, rho=1.0, trained_only=trained_only), "*layers.0.mlp.down_proj")
        handle.calibrate(batches)
        x = found[0][batches.inputs[0][mask] != 0]
        v = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:3]
        a = handle.state()["model.layers.0.mlp.down_proj.a"]
        torch.testing.assert_close((a @ v.T).abs(), torch.eye(3), rtol=1e-3, atol=1e-3)
        handle.detach()


def test_too_few_tokens_are_refused_with_what_to_do():
    model = llama()
    handle = attach(model, EVA(rank=16, rho=2.0), "*q_proj")
    with pytest.raises(
        Refused, match=r"a batch with at least 32 tokens at model\.layers\.0\.self_attn\.q_proj; got at most"
    ):
        handle.calibrate(Batches(model, rows=2, length=8))


def test_a_fresh_handle_takes_the_ranks_of_a_saved_state():
    from safetensors.torch import load, save

    model, fresh = llama(), llama()
    handle = attach(model, EVA(rank=2, rho=3.0))
    handle.calibrate(Batches(model))
    empty(handle)
    shaken(handle)
    again = attach(fresh, EVA(rank=2, rho=3.0))
    again.load(load(save({k: v.contiguous() for k, v in handle.state().items()})))
    assert torch.equal(logits(fresh), logits(model))
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in handle.named_parameters()]
    site = handle.sites[0].name
    wrong = {**handle.state(), f"{site}.a": torch.zeros(7, 32)}
    with pytest.raises(CheckpointError, match="that differ"):
        again.load(wrong)
    with pytest.raises(CheckpointError, match="instead of"):
        again.load({**handle.state(), f"{site}.a": torch.zeros(2, 31)})
    assert torch.equal(logits(fresh), logits(model))
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    merged = handle.merged()
    handle.merge_into_model()
    torch.testing.assert_close(logits(model), logits(twin), rtol=1e-5, atol=1e-5)
    assert merged


def test_with_the_same_directions_it_is_lora():
    ours, theirs = llama(), llama()
    one, two = attach(ours, EVA(rank=4, alpha=6.0, rho=1.0)), attach(theirs, LoRA(rank=4, alpha=6.0))
    one.calibrate(Batches(ours))
    shaken(one)
    two.load(one.state())
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("build", [llama, gpt2])
def test_peft_reads_the_export_where_a_layer_has_rank_zero(build: Any, tmp_path: Path):
    from peft import PeftModel

    model = build()
    handle = attach(model, EVA(rank=1, rho=4.0))
    handle.calibrate(Batches(model))
    empty(handle)
    shaken(handle)
    export_lora(handle, tmp_path / "a", "somewhere/base")
    same(logits(PeftModel.from_pretrained(build(), str(tmp_path / "a")).eval()), logits(model))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:lora with eva initialization")
@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_starts_ranks_and_scales_equal_peft(rho: float, monkeypatch: pytest.MonkeyPatch):
    """With exact decompositions, and components that may turn their sign, on both sides."""
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
    from peft.tuners.lora import eva as theirs
    from peft.utils.incremental_pca import IncrementalPCA

    plain = torch.cosine_similarity
    monkeypatch.setattr(theirs, "IncrementalPCA", lambda **given: IncrementalPCA(given["n_components"], copy=True))
    monkeypatch.setattr(torch.nn.functional, "cosine_similarity", lambda a, b: plain(a, b).abs())
    targets = ["q_proj", "o_proj", "down_proj"]
    model, other = llama(), llama()
    batches = Batches(model, count=40)
    handle = attach(model, EVA(rank=4, alpha=6.0, rho=rho, tau=0.95), ",".join(f"*{t}" for t in targets))
    handle.calibrate(batches)
    assert 3 < batches.given < 40
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights="eva",
                        eva_config=EvaConfig(rho=rho, tau=0.95))  # fmt: skip
    twin = get_peft_model(other, config)
    data = [{"input_ids": i["input_ids"], "attention_mask": i["attention_mask"],
             "labels": i["input_ids"].masked_fill(i["loss_mask"] == 0, -100)} for i in batches.inputs]  # fmt: skip
    initialize_lora_eva_weights(twin, data, show_progress_bar=False)
    for site, a, b, s in handle.low_rank():
        layer: Any = twin.base_model.model.get_submodule(site)
        want = layer.lora_A["default"].weight
        assert want.shape == a.shape
        cosine = torch.cosine_similarity(a, want, 1).abs()
        torch.testing.assert_close(cosine, torch.ones(len(a)), rtol=1e-4, atol=1e-4)
        assert layer.scaling["default"] == pytest.approx(s)
        assert not b.any()


def test_layers_that_read_one_tensor_share_the_work():
    search, x = Search({"q": 9, "k": 9}, 2, 2.0, 0.99), drawn(30, 9)
    for _ in range(2):
        search.add({"q": x, "k": x})
    assert search.found["q"].components is search.found["k"].components
    assert search.found["k"].count == 60
    assert not search.open("q")


def test_a_run_that_was_stopped_resumes_with_its_ranks_to_the_same_bits(tmp_path: Path):
    """Together with lora_pro, whose moments have the shape of the weights."""
    from luthier.recipes.build import prepare
    from luthier.recipes.recipe import parse
    from luthier.train.loop import Loop

    plain = {"model": "lab:language", "data": {"train": "lab:language/rotate", "rows": 16}, "seed": 3,
             "adapt": {"eva": {"rank": 2, "rho": 4.0, "calibration": 3, "sites": "*q_proj, *down_proj"}},
             "optimiser": "sgd", "regularise": [{"lora_pro": {"adam": True}}],
             "train": {"steps": 5, "batch": 4, "lr": 0.01, "save_every": 3, "keep": 1}}  # fmt: skip

    def loop() -> tuple[Any, Loop]:
        made = prepare(parse(plain))
        made.job.out = tmp_path
        return made, Loop(made.job)

    whole, running = loop()
    assert running.run().cost["forwards_calibration"] > 0
    want = {k: v.clone() for k, v in whole.policy.attached.state().items()}
    assert len({v.shape[0] for k, v in want.items() if k.endswith(".a")}) > 1
    again, resumed = loop()
    assert "forwards_calibration" not in again.policy.forwards
    resumed.run(resume=True)
    got = again.policy.attached.state()
    assert all(torch.equal(got[n], want[n]) for n in want)
