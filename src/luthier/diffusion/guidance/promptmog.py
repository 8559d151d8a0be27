"""PromptMoG: draw each sample's prompt embedding from a mixture of Gaussians around the prompt.

Paper: arXiv 2511.20251.
Formula: token e becomes e + r u_k + sigma z: r = |e| sqrt(2 (1 - similarity)), u_1 .. u_K the corners of a regular simplex in random
orientation, k random for each token.
Takes: encoded conditions.   Gives: other conditions; the denoiser and the sampler stay.
Choose it when: samples of a long prompt look alike.   Rather not when: every word must be kept exactly.
Relatives: contrastive_noise, nn_repulsion.

>>> import torch
>>> u = simplex(3, 5, torch.Generator().manual_seed(0)); [round(v, 2) + 0.0 for v in (u @ u.T)[0].tolist()]
[1.0, -0.5, -0.5]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Generator, Tensor

from luthier.core import Card, Guidance, component, stream
from luthier.core.errors import Refused, sentence
from luthier.diffusion.schedules._path import Condition

CARD = Card(
    name="PromptMoG",
    source="arXiv 2511.20251",
    papers=(315,),
    cost="none at sampling",
    limits=(
        "similarity = 1 and sigma = 0 leaves the embedding bit for bit",
        "the centres lie at cosine similarity `similarity` around the token if lengths stay, and average to the token",
        "the draws have mean c and covariance sigma^2 I + r^2 / (K - 1) times the projection on the simplex's span",
        "special tokens stay",
    ),
    differs=(
        "centres, radius, kept tokens and defaults follow the authors' code; there the orientation is that of two rotations "
        "of the whole space, here of one frame of K - 1 directions, which is the same distribution at less cost",
        "one orientation for all samples of a seed, one centre for each sample and token",
        "centres are at the stated similarity exactly only for small angles: the code moves by a chord and keeps no length",
    ),
    use_when="samples of a long prompt look alike",
    avoid_when="every word must be kept exactly",
    relatives=("diffusion.guidance.contrastive_noise", "diffusion.guidance.nn_repulsion"),
    mechanism="diversity layer",
)


def simplex(modes: int, dimension: int, generator: Generator) -> Tensor:
    """Unit vectors (modes, dimension) with equal angles that sum to zero, in random orientation; float64.

    Raises Refused where more than dimension + 1 are asked for.
    """
    if modes > dimension + 1:
        came = f"{modes} in {dimension} dimensions"
        raise Refused(sentence("promptmog", "at most one mode more than dimensions", came, "Lower `modes`"))
    if modes == 1:
        return torch.zeros(1, dimension, dtype=torch.float64)
    frame = torch.linalg.qr(torch.randn(dimension, modes - 1, generator=generator, dtype=torch.float64)).Q
    centred = torch.eye(modes, dtype=torch.float64) - 1 / modes
    corner = torch.linalg.eigh(centred).eigenvectors[:, 1:] * math.sqrt(modes / (modes - 1))
    return corner @ frame.T


def mixture_draw(tokens: Tensor, corners: Tensor, mode: Tensor, z: Tensor, similarity: float, sigma: float) -> Tensor:
    """tokens (..., d) moved to corner `mode` (...) of corners (K, d) at their radius, plus sigma z; z (..., d)."""
    radius = tokens.norm(dim=-1, keepdim=True) * math.sqrt(2 * (1 - similarity))
    return tokens + radius * corners[mode] + sigma * z


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class PromptMoG(Guidance):
    """similarity: cosine of centre and token; modes: number of centres; sigma: deviation around a centre; special: places of
    tokens that stay; names: which conditions (none: all embeddings)."""

    similarity: Annotated[float, Ge(-1), Le(1)] = 0.85
    modes: Annotated[int, Ge(1)] = 50
    sigma: Annotated[float, Ge(0)] = 0.25
    special: tuple[int, ...] = (0, 1, -1)
    names: tuple[str, ...] = ()

    def condition(self, condition: Condition, noise: Any) -> Condition:
        if condition is None or (self.similarity == 1 and self.sigma == 0):
            return condition
        names = self.names or tuple(k for k, v in condition.items() if v.is_floating_point() and v.ndim in (2, 3))
        bad = [k for k in names if k not in condition or not condition[k].is_floating_point()]
        if bad or not names:
            came = ", ".join(f"{k} {v.dtype}" for k, v in condition.items())
            raise Refused(
                sentence("promptmog", "encoded conditions (B, d) or (B, T, d)", came, "Encode the prompts first")
            )
        if not hasattr(noise, "rows"):
            raise Refused(
                sentence("promptmog", "`noise` with a row number for each sample", str(type(noise)), "Give Noise")
            )
        return {**condition, **{k: self.drawn(condition[k], noise.part(f"promptmog.{k}")) for k in names}}

    def drawn(self, value: Tensor, noise: Any) -> Tensor:
        """Embeddings (B, d) or (B, T, d) with every token drawn anew but the special ones."""
        d, device = value.shape[-1], value.device
        corners = simplex(self.modes, d, stream(noise.seed, f"{noise.role}.frame")).to(torch.float32)
        z = noise.normal(value.shape, 0)
        pick = noise.part("mode").normal((*value.shape[:-1], 1), 0)[..., 0]
        mode = (torch.special.ndtr(pick) * self.modes).long().clamp_max(self.modes - 1)
        out = mixture_draw(
            value.float(), corners.to(device), mode.to(device), z.to(device), self.similarity, self.sigma
        )
        out = out.to(value.dtype)
        if value.ndim == 3:
            stay = sorted({p % value.shape[1] for p in self.special if -value.shape[1] <= p < value.shape[1]})
            out[:, stay] = value[:, stay]
        return out
