"""NEFTune: uniform noise on token embeddings in training, against overfitting to the wording of few examples.

Paper: arXiv 2310.05914.   Formula: x + alpha / sqrt(L d) * u, u uniform in [-1, 1], for each real token of a sequence
of L tokens of width d.
Takes: embeddings in training forwards.   Gives: noisy embeddings; evaluation, sampling and the reference stay
untouched.
Choose it when: the instruction set is small or narrow.   Rather not when: answers must be copied exactly, or length
matters (part of the published gain comes with longer answers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Generator, Tensor

from luthier.core import Card, Context, Hook, Needs, component

CARD = Card(
    name="NEFTune",
    source="arXiv 2310.05914",
    papers=(335,),
    needs=Needs(batch=("text", "preference", "scored", "feedback", "judged", "set", "prompts", "group")),
    cost="one random tensor of the size of the embeddings per training forward",
    limits=(
        "the largest possible |noise| is alpha / sqrt(L d)",
        "expected squared norm of the noise over a sequence is alpha^2 / 3 whatever L and d",
        "padding gets no noise and does not change L",
    ),
    differs=(
        "L counts real tokens and padding gets no noise, as in the authors' code; transformers takes the padded width",
        "in a packed row L is the length of each sequence in it, so that packing changes nothing",
    ),
    use_when="a small instruction set is trained for several passes",
    avoid_when="exact wording or short answers matter",
    mechanism="noise injection",
)


def sequence_lengths(mask: Tensor) -> Tensor:
    """Length of the sequence that each token belongs to, (B, T), 0 at padding.

    mask (B, T): 0 is padding, 1 a real token; packed rows may number their sequences 1, 2, 3, ...
    """
    owner = mask.long()
    size = torch.zeros(owner.shape[0], int(owner.max()) + 1, dtype=torch.long, device=owner.device)
    size = size.scatter_add(1, owner, torch.ones_like(owner))
    return torch.where(owner > 0, size.gather(1, owner), 0)


def neftune_noise(x: Tensor, mask: Tensor, alpha: float, generator: Generator | None = None) -> Tensor:
    """Noise of x's shape (B, T, d): uniform in +- alpha / sqrt(L d) at real tokens, 0 at padding; no gradient."""
    length = sequence_lengths(mask)
    bound = torch.where(length > 0, alpha * (length.clamp(min=1) * x.shape[-1]).to(torch.float64).rsqrt(), 0)
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (2 * uniform - 1) * bound.to(x.dtype)[..., None]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class NEFTune(Hook):
    """alpha: size of the noise; 5, 10 and 15 were tried in the paper."""

    points: ClassVar[tuple[str, ...]] = ("embeddings",)
    alpha: Annotated[float, Gt(0)] = 5.0

    def embeddings(self, x: Tensor, mask: Tensor, ctx: Context) -> Tensor:
        """x (B, T, d) plus noise; mask as in `sequence_lengths`."""
        noise = neftune_noise(x, mask, self.alpha, _generator(ctx, x.device))
        ctx.note(int((mask != 0).sum()))
        return x + noise


def _generator(ctx: Context, device: torch.device) -> Generator:
    """The step's stream; each further micro-batch (told apart by what was changed before it) and rank has its own."""
    ranked = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if ranked else 0
    named = ctx.generator(f"regularise.noise.neftune/{rank}/{ctx.changed}")
    if device.type == "cpu":
        return named
    seed = int(torch.randint(2**62, (), generator=named))
    return torch.Generator(device=device).manual_seed(seed)
