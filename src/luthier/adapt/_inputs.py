"""What flows into the adapted layers on the first batches of a run: for starts and choices that are made from data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt._handle import WornHandle
from luthier.core import Batch, Calibration


def site_inputs(
    handle: WornHandle, calibration: Calibration, trained_only: bool, wanted: Callable[[str], bool] | None = None
) -> Iterator[dict[str, Tensor]]:
    """For each batch the rows (n, in) that every site of the handle reads, the adaptation switched off.

    trained_only: of token sequences only trained tokens; padding never counts. wanted: whether a site is still needed,
    asked before each batch. Sites that read one tensor (query, key and value) give one tensor, the same object. The inputs
    of a batch are held until the next one.
    """
    held: dict[str, list[Tensor]] = {}

    def look(site: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if wanted is None or wanted(site):
                held.setdefault(site, []).append(given[0])

        return hook

    with ExitStack() as stack:
        stack.enter_context(handle.disabled())
        for site, module in handle.modules.items():
            stack.callback(module.register_forward_pre_hook(look(site)).remove)
        batches = calibration.forwards()
        stack.callback(getattr(batches, "close", lambda: None))
        for batch in batches:
            cut: dict[int, Tensor] = {}
            rows = {}
            for site, given in held.items():
                for x in given:
                    if id(x) not in cut:
                        cut[id(x)] = _rows(x.detach(), batch, trained_only)
                found = [cut[id(x)] for x in given]
                rows[site] = found[0] if len(found) == 1 else torch.cat(found)
            yield rows
            held.clear()


def _rows(x: Tensor, batch: Batch, trained_only: bool) -> Tensor:
    inputs = getattr(batch, "inputs", {})
    seen = inputs.get("attention_mask")
    mask = None if seen is None else seen != 0
    if trained_only and "loss_mask" in inputs:
        mask = inputs["loss_mask"] != 0
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    return x.flatten(0, -2)
