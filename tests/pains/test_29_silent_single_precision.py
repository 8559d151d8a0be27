"""peft #1706, #2421; axolotl #3310; AgileRL #623: adapters silently in fp32; the cast of inputs cost a fifth of the memory."""

from __future__ import annotations

import pytest
import torch

from luthier.core.files import read_tensors
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain

ADAPT = {"lora": {"lora": {"rank": 2}}, "loha": {"loha": {"rank": 2}}, "series_adapter": "series_adapter"}


@pytest.mark.parametrize("adapt", ADAPT)
def test_in_half_precision_adapter_activations_and_files_are_in_half_precision(place, tmp_path, adapt):
    made = run(parse(plain(place, adapt=ADAPT[adapt], dtype="bf16", train={"packing": 0})), tmp_path / "run")
    assert {v.dtype for v in read_tensors(tmp_path / "run" / "adapter" / "adaptation.safetensors").values()} == {
        torch.bfloat16
    }
    seen: set[torch.dtype] = set()
    model = made.prepared.policy.view.module.model
    for module in model.modules():
        if "proj" in type(module).__name__.lower() or isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, i, o: seen.update({i[0].dtype, o.dtype}))
    model(input_ids=torch.arange(7, 17)[None])
    assert seen == {torch.bfloat16}
