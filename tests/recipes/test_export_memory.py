"""Saving a merged model needs one copy at most of what changed, no second model: no run dies of memory at its very end."""

import pytest

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.lora import LoRA
from luthier.recipes.export import write_folded
from luthier.train.memory import PeakMemory, bytes_of
from tests.adapt.tiny import llama, shaken


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("adaptation", "copies"), [(Full(), 0), (LoRA(rank=2), 1)], ids=["full", "lora"])
def test_saving_copies_what_was_added_to_and_nothing_that_trained_in_place(adaptation, copies, tied, tmp_path):
    model = llama(tied=tied, hidden_size=64, intermediate_size=128)
    size = bytes_of(model.parameters())
    handle = attach(model, adaptation)
    shaken(handle)
    held = [*model.parameters(), *(getattr(handle, "base", None) or {}).values()]
    with PeakMemory() as memory:
        memory.track(held)
        write_folded(model, handle, None, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 0.9 * size
    assert memory.peak - bytes_of(held) < (copies + 0.1) * size
