"""Which weight matrices an adaptation changed, as they were and as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.protocols import Adaptation, Attached

Changes = Callable[[], Iterator[tuple[str, Tensor, Tensor]]]


def changes_of(model: nn.Module, attached: Attached, adaptations: Sequence[Adaptation]) -> Changes | None:
    """`changed_matrices` to be called when they are wanted; None where an adaptation has no weights to show."""
    mergeable = all(a.merge.kind != "never" for a in adaptations)
    return partial(changed_matrices, model, attached) if mergeable else None


def changed_matrices(model: nn.Module, attached: Attached) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name of the module, base, tuned), both (out, in), for each linear map that differs, in model order.

    Embeddings and the output head are left out. Raises Refused
    where the adaptation cannot be merged.
    """
    merged = attached.merged()
    with torch.no_grad(), attached.disabled():
        before = {name: model.get_parameter(name).detach().clone() for name in merged if _is_map(model, name)}
    for name, base in before.items():
        tuned = merged[name].detach().to(base.device)
        if base.shape == tuned.shape and not torch.equal(base, tuned.to(base.dtype)):
            turned = _stored_transposed(_owner(model, name))
            yield name.removesuffix(".weight"), *((base.T, tuned.T) if turned else (base, tuned))


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _stored_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out)."""
    return any(c.__name__ == "Conv1D" for c in type(module).__mro__)


def _is_map(model: Any, name: str) -> bool:
    try:
        owner = _owner(model, name)
    except AttributeError:
        return False
    weight = owner._parameters.get(name.rpartition(".")[2])
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = isinstance(owner, nn.Linear) or _stored_transposed(owner)
    return name.endswith(".weight") and linear and owner is not head and weight is not None and weight.ndim == 2
