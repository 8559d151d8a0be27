"""Weights, gradients and optimiser state spread over processes (FSDP2): each holds its share of every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import Refused


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Shard a module in place over all processes, one group for each block of its longest lists of layers.

    Parameters become DTensors; what reads them outside of the module's forward must gather them first.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in blocks(module):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers of a model's stacks: members of its outermost lists of at least two modules."""
    found: list[nn.Module] = []
    for child in module.children():
        members = list(child.children())
        if isinstance(child, nn.ModuleList) and len(members) > 1:
            found += members
        else:
            found += blocks(child)
    return found


@contextmanager
def unsynchronised(module: Any) -> Iterator[None]:
    """Gradients of this block's backward passes stay on each process, to be summed by a later one."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def is_sharded(t: Any) -> bool:
    """Whether a tensor is spread over processes."""
    return isinstance(t, Tensor) and hasattr(t, "full_tensor")


def gathered(value: Any) -> Any:
    """Nested state with every sharded tensor made whole. Collective: call it on every process."""
    if is_sharded(value):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {k: gathered(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(gathered(v) for v in value)
    return value


def scattered(state: Mapping[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state, spread as its parameters are: tensors of a parameter's own shape are shared out."""
    from torch.distributed.tensor import distribute_tensor

    parameters: list[Any] = [p for g in optimiser.param_groups for p in g["params"]]
    out: dict[int, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        p = parameters[int(number)]
        spread = is_sharded(p)
        out[number] = {
            k: distribute_tensor(v.to(p.device), p.device_mesh, p.placements)
            if spread and isinstance(v, Tensor) and v.shape == p.shape
            else v
            for k, v in entries.items()
        }
    return {**state, "state": out}


def total_norm(grads: list[Tensor]) -> float:
    """Euclidean norm of all gradients, over all processes where they are sharded."""
    if not grads:
        return 0.0
    norm = nn.utils.get_total_norm(grads)
    return float(gathered(norm))


def check_rules(parameters: list[nn.Parameter], optimiser: str) -> None:
    """Refuse update rules that need whole matrices. Raises Refused."""
    if any(is_sharded(p) for p in parameters) and optimiser not in ("adamw", "sgd"):
        raise Refused(f"optimiser {optimiser} requires whole matrices; train.shard spreads them over processes. Use adamw or sgd, or "
                      "leave train.shard out.")  # fmt: skip


def keep_whole(module: nn.Module) -> None:
    """Gather all weights of a sharded module and leave them so, for measuring and saving. Collective."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False)
            part.unshard()
