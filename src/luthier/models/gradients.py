"""Gradients of single sequences, made short by a random projection, for comparing what rows would teach a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.core.errors import NonFinite, sentence
from luthier.core.streams import stream
from luthier.models.collate import Tokens, pad
from luthier.models.language import LanguageModule

ROLE = "models.gradients"


class Sketch:
    """A random linear map of all parameters' gradients to `dim` numbers: each entry goes to one place with a sign.

    Inner products are kept in expectation, with a variance of at most 2 / dim of the product of squared lengths (count
    sketch; Charikar, Chen and Farach-Colton 2002). Places depend on the seed and the parameter's position only. Holds five
    bytes for each parameter.
    """

    def __init__(self, shapes: Sequence[torch.Size], dim: int, seed: int, device: torch.device | str = "cpu") -> None:
        """shapes: of the parameters in order. Raises ValueError for dim < 1."""
        if dim < 1:
            raise ValueError(sentence("projected gradients", "at least one dimension", str(dim), "Raise dim"))
        self.dim, self.places, self.signs = dim, [], []
        for i, shape in enumerate(shapes):
            g = stream(seed, ROLE, i)
            self.places.append(torch.randint(dim, (shape.numel(),), generator=g, dtype=torch.int32).to(device))
            signs = torch.randint(2, (shape.numel(),), generator=g, dtype=torch.int8)
            self.signs.append((2 * signs - 1).to(device))

    def __call__(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The projection of one gradient, (dim,) float32; a parameter without gradient has a gradient of 0."""
        out = torch.zeros(self.dim, device=self.places[0].device)
        for gradient, place, sign in zip(gradients, self.places, self.signs, strict=True):
            if gradient is not None:
                out.index_add_(0, place, gradient.detach().flatten().float() * sign)
        return out


def projected_gradients(
    module: LanguageModule, sequences: Sequence[Tokens], dim: int = 1024, seed: int = 0, pad_id: int = 0
) -> Tensor:
    """Gradients of the mean negative log-prob of each sequence's trained tokens in all weights, projected, (n, dim).

    One forward and backward for each sequence; evaluation mode and gradient flags are put back afterwards. Raises NonFinite
    naming the sequence whose gradient is not finite.
    """
    parameters = [p for p in module.model.parameters() if p.is_floating_point()]
    device = parameters[0].device
    sketch = Sketch([p.shape for p in parameters], dim, seed, device)
    flags, training = [p.requires_grad for p in parameters], module.training
    out = torch.zeros(len(sequences), dim)
    try:
        module.eval()
        _set(parameters, [True] * len(parameters))
        for i, one in enumerate(sequences):
            with torch.enable_grad():
                inputs = {k: v.to(device) for k, v in pad([one], pad_id).items()}
                got = module(inputs["input_ids"], ("token_logp",), inputs["loss_mask"])["token_logp"]
                loss = -got.sum() / max(1, sum(one.mask))
                made = torch.autograd.grad(loss, parameters, allow_unused=True)
            out[i] = sketch(made).cpu()
            if not bool(torch.isfinite(out[i]).all()):
                raise NonFinite(
                    sentence("projected gradients", "finite gradients", f"others in row {i + 1}", "Check it")
                )
    finally:
        _set(parameters, flags)
        module.train(training)
    return out


def _set(parameters: Sequence[nn.Parameter], flags: Sequence[bool]) -> None:
    for p, flag in zip(parameters, flags, strict=True):
        p.requires_grad_(flag)
