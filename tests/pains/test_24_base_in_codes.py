"""peft #2321, #2105, #1043; transformers #31293; unsloth-zoo #810: which base an adapter trained in 4 bits is merged into."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from luthier.adapt.attach import attach
from luthier.adapt.lowrank.lora import LoRA
from tests.adapt.tiny import llama, logits, shaken
from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import plain


class Codes(torch.nn.Parameter):
    """A weight in 16 levels: what it computes with is `dequantize`."""

    @staticmethod
    def of(w: torch.Tensor) -> Codes:
        scale = w.abs().max() / 7
        made = torch.Tensor._make_subclass(Codes, (w / scale).round() * scale, False)
        return made  # type: ignore[return-value]

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).detach().clone()


def test_the_merge_goes_into_the_decoded_base_and_not_into_the_one_before_coding():
    model = llama()
    before = {n: m.weight.detach().clone() for n, m in model.named_modules() if n.endswith("q_proj")}
    for module in (m for n, m in model.named_modules() if n.endswith("q_proj")):
        module.weight = Codes.of(module.weight.detach())
    handle = attach(model, LoRA(rank=2), "q_proj")
    shaken(handle)
    want, merged = logits(model), handle.merged()
    again = llama()
    again.load_state_dict(dict(merged), strict=False)
    torch.testing.assert_close(logits(again), want, rtol=1e-4, atol=1e-5)
    assert all((before[n] - merged[f"{n}.weight"]).abs().max() > 1e-3 for n in before)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_a_quantised_folder_whose_decoder_is_missing_is_refused_in_a_sentence(place, tmp_path, method):
    shutil.copytree(place / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    recipe = write_recipe(tmp_path / "r.yaml", {**plain(place, adapt="lora"), "model": str(tmp_path / "model")})
    refused(
        luthier("run", recipe, "--out", tmp_path / "run"), "a package that reads its weights", "before it was quantised"
    )
