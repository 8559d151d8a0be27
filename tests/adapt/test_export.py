from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.lowrank.lora import LoRA
from luthier.adapt.peft import Peft, methods
from luthier.adapt.sparse.neuroada import NeuroAda
from luthier.core import Adaptation, Sites
from luthier.core.errors import Refused
from luthier.core.registry import entries
from tests.adapt.test_contract import COMPONENTS, fits, variants
from tests.adapt.test_peft import METHODS
from tests.adapt.tiny import IDS, bert, convolutions, embedding, gpt2, llama, logits, pixels, shaken
from tests.tolerance import same

ALL = ("linear", "conv", "embedding")
CASES = {
    "llama": (llama, logits, Sites("*q_proj, *down_proj, lm_head"), LoRA(rank=3, alpha=7.0, rank_stabilised=True)),
    "b_only": (llama, logits, Sites("all-linear"), LoRA(rank=3, mode="b_only")),
    "gpt2": (gpt2, logits, Sites("*c_attn, *c_proj"), LoRA(rank=3, alpha=7.0)),
    "embedding": (embedding, logits, Sites("0, 1", kinds=ALL), LoRA(rank=3, alpha=7.0)),
    "convolutions": (lambda: convolutions()[:1], pixels, Sites("0", kinds=ALL), LoRA(rank=3, alpha=7.0)),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_peft_reads_the_checkpoint_and_gives_the_same_outputs(case: str, tmp_path: Path):
    from peft import PeftModel

    build, run, sites, lora = CASES[case]
    model = build()
    handle = attach(model, lora, sites)
    shaken(handle)
    export_lora(handle, tmp_path / "adapter", "somewhere/base")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    again = PeftModel.from_pretrained(build(), str(tmp_path / "adapter")).eval()
    same(run(again), run(model))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somewhere/base"
    assert config["lora_alpha"] == config["r"] == 3


# --------------------------------------------------------------- every adaptation
MODELS = {
    "llama": (llama, logits),
    "gpt2": (gpt2, logits),
    "bert": (bert, logits),
    "convolutions": (lambda: convolutions()[:3], pixels),
}
FORMS = [
    pytest.param(ident, i, model, id=f"{ident.removeprefix('adapt.')}-{i}-{model}")
    for ident in COMPONENTS
    for i, _ in enumerate(variants(ident))
    for model in MODELS
    if fits(ident, model) and (model != "convolutions" or "conv" in getattr(entries()[ident].load(), "kinds", ()))
]


def low_rank(ident: str, adaptation: Adaptation) -> bool:
    """Whether PEFT has a twin of it: told by the card, by the pair of a bottleneck, or by being PEFT's own."""
    tagged = "low_rank" in entries()[ident].load().card.tags and adaptation.merge.kind == "exact"
    return (
        tagged
        or ident in ("adapt.peft", "adapt.sparse.s2ft")
        or getattr(adaptation, "pair", lambda _: None)({}) is not None
    )


@pytest.mark.parity
@pytest.mark.filterwarnings(
    "ignore:LoRA adapter added to ConvNd:UserWarning", "ignore:fan_in_fan_out is set to:UserWarning"
)
@pytest.mark.parametrize(("ident", "form", "model"), FORMS)
@torch.no_grad()
def test_peft_reads_whatever_it_has_a_twin_of_and_the_rest_is_refused(
    ident: str, form: int, model: str, tmp_path: Path
):
    from peft import PeftModel

    adaptation, (build, run) = variants(ident)[form](), MODELS[model]
    kinds = tuple(k for k in getattr(adaptation, "kinds", ()) if k in ("linear", "conv"))
    handle = attach(
        build(), adaptation, Sites("*", kinds=kinds) if model == "convolutions" and "conv" in kinds else None
    )
    shaken(handle)
    if not low_rank(ident, adaptation):
        with pytest.raises(Refused, match=f"{re.escape(ident)} is none"):
            export_lora(handle, tmp_path / "a", "somewhere/base")
        return
    base = run(build())
    export_lora(handle, tmp_path / "a", "somewhere/base")
    again = PeftModel.from_pretrained(build(), str(tmp_path / "a")).eval()
    same(run(again), run(handle.model))
    assert not torch.allclose(run(again), base, rtol=1e-4, atol=1e-5)
    assert again.peft_config["default"].base_model_name_or_path == "somewhere/base"


def test_a_convolution_that_peft_would_run_differently_is_refused(tmp_path: Path):
    """PEFT's own convolution A has neither the dilation nor the padding mode of the layer."""
    with pytest.raises(Refused, match=r"4 has dilation \(2,\) and padding 'circular'"):
        export_lora(attach(convolutions(), LoRA(rank=2), Sites("*", kinds=ALL)), tmp_path / "a", "somewhere/base")


def test_there_are_adaptations_of_both_sorts():
    found = {ident: any(low_rank(ident, make()) for make in variants(ident)) for ident in COMPONENTS}
    assert {i for i, yes in found.items() if yes} >= {
        f"adapt.lowrank.{n}" for n in ("lora", "loha", "lokr", "locon", "eva", "cola")
    }
    assert not all(found.values())


@pytest.mark.filterwarnings(
    "ignore:Failed to load the CUDA:UserWarning",
    "ignore:Setting boft_n_butterfly_factor:UserWarning",
    "ignore:Unsupported layer type:UserWarning",
    "ignore:Sparse invariant checks:UserWarning",
)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_every_method_of_peft_is_written_by_peft(method: str, tmp_path: Path):
    from peft import PeftModel

    if method not in methods():
        pytest.skip(f"this version of peft has no {method}")
    handle = attach(llama(), Peft(method=method, config=METHODS[method]))
    shaken(handle)
    export_lora(handle, tmp_path / "a", "somewhere/base")
    again = PeftModel.from_pretrained(llama(), str(tmp_path / "a")).eval()
    got = logits(again)
    same(got[:, got.shape[1] - IDS.shape[1] :], logits(handle.model))  # PEFT gives outputs for learnt prompts too


def test_a_start_that_changes_the_base_is_refused(tmp_path: Path):
    handle = attach(llama(), Peft(config={"target_modules": ["q_proj"], "init_lora_weights": "pissa"}))
    with pytest.raises(Refused, match=r"base weights as they were.*q_proj"):
        export_lora(handle, tmp_path / "a", "somewhere/base")


def test_what_is_not_low_rank_or_has_no_base_name_is_refused(tmp_path: Path):
    with pytest.raises(Refused, match=r"adapt\.sparse\.neuroada is none"):
        export_lora(attach(llama(), NeuroAda()), tmp_path / "x", "base")
    with pytest.raises(Refused, match="name of its base model"):
        export_lora(attach(embedding(), LoRA(rank=2), "1"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_half_precision_export_keeps_the_dtype(tmp_path: Path):
    from luthier.core.files import read_tensors

    handle = attach(llama().bfloat16(), LoRA(rank=2), "*q_proj")
    export_lora(handle, tmp_path / "a", "base")
    assert {t.dtype for t in read_tensors(tmp_path / "a" / "adapter_model.safetensors").values()} == {torch.bfloat16}
