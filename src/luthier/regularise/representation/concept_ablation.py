"""Concept ablation: project chosen directions out of hidden states while training, so that the weights cannot lean on them.

Paper: arXiv 2507.16795 (CAFT).   Formula: h <- h - Q Q^T h after a block, Q (d, k) orthonormal columns (QR of the directions);
only in training passes, so that measuring, sampling and the reference see the plain model.
Takes: a safetensors file with "block.<n>" (k, d), directions at each block.   Gives: a tuned model without any projection.
Choose it when: the data invite a concept that should not be learnt.   Rather not when: nobody knows its directions.
Relatives: replay (keeps old behaviour by data), l2_base (keeps weights near).

>>> q = basis(torch.tensor([[3.0, 0.0, 0.0]]))
>>> without(torch.tensor([1.0, 2.0, 3.0]), q).tolist()
[0.0, 2.0, 3.0]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from luthier.core import Card, Context, Hook, component
from luthier.core.errors import Refused, sentence
from luthier.core.files import read_tensors
from luthier.core.sites import block_of

CARD = Card(
    name="CAFT",
    source="arXiv 2507.16795",
    papers=(12,),
    cost="two thin products a block and token in training; nothing afterwards",
    limits=(
        "P = I - Q Q^T is symmetric and idempotent, and Q^T h = 0 behind it",
        "the gradient that arrives in front of it has no part along Q",
        "evaluation mode: the model as it is, bit for bit",
    ),
    differs=(
        "directions are given in a file; principal components of activation differences and differences of means are functions "
        "here, latents of sparse autoencoders are any rows of the file",
        "the released code projects with principal components as they come and makes other directions orthonormal by QR; here "
        "all go through QR",
        "directions that depend on each other are refused",
        "the projection agrees with the hook read in the released code",
    ),
    use_when="a wrong shortcut is known and its directions can be found",
    avoid_when="the directions also carry what should be learnt",
    relatives=("regularise.forgetting.replay", "regularise.anchor.l2_base"),
    mechanism="activation projection",
)


def basis(directions: Tensor) -> Tensor:
    """Orthonormal columns Q (d, k) that span directions (k, d). Raises Refused unless these are independent."""
    wide = directions.to(torch.promote_types(directions.dtype, torch.float32))
    if torch.linalg.matrix_rank(wide) < len(wide):
        required = f"{len(wide)} independent directions"
        raise Refused(sentence("concept_ablation", required, "some that depend on others", "Leave them out"))
    return torch.linalg.qr(wide.T).Q


def without(h: Tensor, q: Tensor) -> Tensor:
    """h - Q Q^T h: h (..., d), q (d, k)."""
    return h - (h @ q) @ q.T


def principal(difference: Tensor, k: int) -> Tensor:
    """The k leading principal components (k, d) of rows (n, d), such as activations of a tuned model minus its base's."""
    return torch.linalg.svd(difference - difference.mean(0), full_matrices=False).Vh[:k]


def mean_difference(one: Tensor, other: Tensor) -> Tensor:
    """The unit direction (1, d) from the mean of rows `other` (m, d) to that of rows `one` (n, d)."""
    return nn.functional.normalize(one.mean(0) - other.mean(0), dim=0)[None]


def blocks(model: nn.Module) -> dict[int, nn.Module]:
    """The blocks of a model by number, the outermost of each number."""
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        if re.search(r"(^|\.)\d+$", name) and block_of(name) == int(name.rpartition(".")[2]):
            found.setdefault(block_of(name), module)
    return found


def block_outputs(model: nn.Module, at: Iterable[int], passes: Iterable[Any]) -> Iterator[dict[int, Tensor]]:
    """What blocks give (..., d) in each of `passes`, an iterator that runs the model, such as `Calibration.forwards()`."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for n in at:

            def look(module: nn.Module, given: Any, out: Any, n: int = n) -> None:
                seen[n] = (out[0] if isinstance(out, tuple) else out).detach()

            stack.callback(blocks(model)[n].register_forward_hook(look).remove)
        for _ in passes:
            yield dict(seen)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ConceptAblation(Hook):
    """directions: path of a safetensors file with tensors "block.<n>" (k, d), the directions to remove behind block n."""

    points: ClassVar[tuple[str, ...]] = ("start", "end")
    directions: Annotated[str, MinLen(1)]

    def start(self, ctx: Context) -> None:
        """Project from now on in training passes. Raises Refused for a missing file and directions that do not fit the model."""
        if not Path(self.directions).expanduser().is_file():
            do = 'Write tensors "block.<n>" of shape (directions, width) to one'
            raise Refused(
                sentence("concept_ablation", "a file of directions", f"{self.directions!r}, which is none", do)
            )
        ctx.note(self.wear(ctx.model, read_tensors(Path(self.directions).expanduser())))  # type: ignore[arg-type]

    def resumed(self, ctx: Context) -> None:
        """Project again."""
        self.start(ctx)

    def wear(self, model: nn.Module, directions: Mapping[str, Tensor]) -> int:
        """Hook the projections into a model; the number of directions."""
        there, plan = blocks(model), []
        for name, d in directions.items():
            n = name.removeprefix("block.")
            if not n.isdigit() or int(n) not in there:
                required = f'names "block.<n>", n one of {sorted(there)}'
                raise Refused(sentence("concept_ablation", required, repr(name), "Rename it"))
            plan.append((there[int(n)], basis(d)))
        hooks = [module.register_forward_hook(Projection(q)) for module, q in plan]
        object.__setattr__(self, "_hooks", hooks)
        return sum(q.shape[1] for _, q in plan)

    def end(self, ctx: Context) -> None:
        """Take the projections off."""
        hooks = getattr(self, "_hooks", [])
        for hook in hooks:
            hook.remove()
        ctx.note(len(hooks))
        object.__setattr__(self, "_hooks", [])


@dataclass
class Projection:
    """A forward hook that projects a block's output, the first of several, in training mode."""

    q: Tensor

    def __call__(self, module: nn.Module, given: Any, out: Any) -> Any:
        if not module.training:
            return out
        h = out[0] if isinstance(out, tuple) else out
        if h.shape[-1] != len(self.q):
            came = f"width {len(self.q)}"
            raise Refused(sentence("concept_ablation", f"directions of width {h.shape[-1]}", came, "Find them here"))
        self.q = self.q.to(h.device)
        h = without(h, self.q.to(h.dtype))
        return (h, *out[1:]) if isinstance(out, tuple) else h
