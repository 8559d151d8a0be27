"""A tuned model and its base run as one: each block computes both updates of the tuned stream, and their parts are told apart.

x_{l+1} = x_l + PTC_l + alpha FTC_l with PTC_l = f_base(x_l) and FTC_l = f_tuned(x_l) - f_base(x_l), f a block's update of
the stream. alpha = 1 is the tuned model bit for bit; alpha = 0 is the base, with the tuned embeddings, last norm and head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError, Refused, sentence
from luthier.core.sites import block_of

Off = Callable[[], AbstractContextManager[None]]
Record = Callable[[Tensor, Tensor], None]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model's stack in order: modules whose dotted name ends with the number of a block.

    Raises ModelError where there is none.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        ends = name.rpartition(".")[2].isdecimal() and block_of(name) == int(name.rpartition(".")[2])
        if ends and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    if not found:
        raise ModelError(
            sentence(
                "an interleaved forward pass", "a stack of numbered blocks", type(model).__name__, "Use another model"
            )
        )
    return list(found.values())


def mixed(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """base + alpha (tuned - base), exactly `tuned` at alpha = 1 and `base` at 0; one shape."""
    return tuned if alpha == 1 else base if alpha == 0 else base + alpha * (tuned - base)


@contextmanager
def interleaved(model: nn.Module, off: Off, alpha: float = 1.0, record: Record | None = None) -> Iterator[None]:
    """Inside the block every forward pass of `model` is interleaved with its base, which runs within `off()`.

    record: called for each block with (PTC_l, FTC_l), both (B, T, d). Costs two passes. Raises Refused where a key-value
    cache is in use, since both runs would write to it.
    """

    def both(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if any("Cache" in type(a).__name__ for a in (*args, *kwargs.values())):
            raise Refused(
                sentence(
                    "an interleaved forward pass", "no key-value cache", "one", "Pass use_cache=False, score answers"
                )
            )
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        with off():
            plain = block.forward(*args, **kwargs)
        tuned, base = (o[0] if isinstance(o, tuple) else o for o in (out, plain))
        if record is not None:
            record(base - x, tuned - base)
        new = mixed(base, tuned, alpha)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handles = [b.register_forward_hook(both, with_kwargs=True) for b in blocks_of(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Sums:
    """Sums over blocks of PTC and FTC at one position of each row, (B, d) in float64; a `Record`."""

    def __init__(self, at: Tensor, width: int) -> None:
        """at (B,): the position in each row; width: of the rows. Raises Refused where blocks see more positions."""
        self.at, self.width, self.base, self.tuning = at, width, torch.zeros(()), torch.zeros(())

    def __call__(self, base: Tensor, tuning: Tensor) -> None:
        if base.shape[1] != self.width:
            came = f"{base.shape[1]} for {self.width} tokens"
            required = "as many positions in a block as tokens"
            raise Refused(sentence("an interleaved forward pass", required, came, "It cannot follow virtual tokens"))
        row = torch.arange(len(self.at), device=self.at.device)
        self.base = self.base + base[row, self.at].double().cpu()
        self.tuning = self.tuning + tuning[row, self.at].double().cpu()


def off_of(off: Off | None) -> Off:
    """A way to switch an adaptation off; a model that has none is its own base."""
    return nullcontext if off is None else off
