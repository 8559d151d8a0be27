"""LoRA-Pro: gradients of low-rank factors are changed so that the weight moves as full fine-tuning would move it.

Paper: arXiv 2407.18242.   A step on A and B moves W = W0 + s B A along s (B g_A + g_B A). With G_A, G_B the gradients of the
factors, the choice nearest to the gradient of W is g_A = (B^T B)^-1 G_A / s^2 + X A, g_B = (1 - B (B^T B)^-1 B^T) G_B
(A A^T)^-1 / s^2 - B X for any X; of these the one nearest to G_A, G_B solves B^T B X + X A A^T = -(B^T B)^-1 G_A A^T / s^2.
Takes: adaptations with two trained factors a weight (lora, locon without Tucker form, eva).   Gives: changed gradients.
Choose it when: LoRA lags behind full fine-tuning.   Rather not when: the rank is large: r^3 a site and step.
Relatives: lora (whose gradients these are), adapt.full (whose step is imitated).

>>> a, b = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
>>> g = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
>>> on_a, on_b = projected(a, b, b.T @ g, g @ a.T, 1.0, 0.0)
>>> (b @ on_a + on_b @ a).tolist()
[[1.0, 2.0], [3.0, 4.0]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from luthier.core import Card, Context, Hook, Needs, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="LoRA-Pro",
    source="arXiv 2407.18242",
    papers=(231,),
    needs=Needs(adapt=("factor_pair",)),
    cost="two eigenproblems of size r a site and step; with adam two numbers per entry of every adapted weight",
    limits=(
        "the weight moves along the orthogonal projection of its gradient g on {B Y + Z A}: P_B g + (1 - P_B) g P_A",
        "no scaling of LoRA's own gradients comes nearer to g",
        "the move is the same for (A, B) and (R^-1 A, B R), and for any X",
        "<g, move> = |move|^2: a small step of SGD cannot raise the loss",
        "B = 0: A stays and B moves by G_B (A A^T)^-1 / s^2, as the released code does in its first step",
    ),
    differs=(
        "inverses of singular matrices are pseudo-inverses where damping is 0",
        "eigenvectors of the two symmetric r x r matrices solve the Sylvester equation, in float64; the released code uses "
        "the general solution in the parameters' dtype",
        "adam follows the released optimiser, which keeps Adam's moments of the weight's own step and lets SGD apply the result; "
        "without adam the changed gradients go to any optimiser, which is cheaper and another method",
        "checked against a least-squares solution and a loop over the released steps, read from the authors' code",
    ),
    use_when="LoRA at its best learning rate stays behind full fine-tuning, and the rank is small",
    avoid_when="only one factor trains, or the rank is large",
    relatives=("adapt.lowrank.lora", "adapt.full"),
    mechanism="gradient transforms",
    tags=("stateful",),
)


def projected(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, s: float, damping: float) -> tuple[Tensor, Tensor]:
    """The changed gradients of A (r, in) and B (out, r), in float64.

    damping is added to the eigenvalues of B^T B and A A^T before they are inverted; 0: the pseudo-inverse.
    """
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    a, b, grad_a, grad_b = (t.detach().to(dtype) for t in (a, b, grad_a, grad_b))
    (p, u), (q, v) = torch.linalg.eigh(b.T @ b), torch.linalg.eigh(a @ a.T)
    by_b, by_a = (u * _inverse(p, damping)) @ u.T, (v * _inverse(q, damping)) @ v.T
    on_a = by_b @ grad_a / s**2
    on_b = (grad_b - b @ (by_b @ (b.T @ grad_b))) @ by_a / s**2
    sums = p.clamp(min=0)[:, None] + q.clamp(min=0)[None, :]
    right = u.T @ (on_a @ a.T) @ v
    x = -u @ torch.where(sums > 0, right / sums, 0.0) @ v.T
    return on_a + x @ a, on_b - b @ x


def _inverse(eigenvalues: Tensor, damping: float) -> Tensor:
    smallest = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues.max().clamp(min=0)
    kept = eigenvalues.clamp(min=0) + damping
    return torch.where(kept > smallest, 1 / kept, 0.0)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LoRAPro(Hook):
    """damping as released. adam: keep Adam's moments (beta1, beta2) of the weight's step; the optimiser must then be sgd."""

    room: ClassVar[str] = "optim"
    points: ClassVar[tuple[str, ...]] = ("start", "gradients")
    damping: Annotated[float, Ge(0)] = 1e-8
    adam: bool = False
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999

    def start(self, ctx: Context) -> None:
        """Forget an earlier run. Raises Refused where no pair of factors trains."""
        pairs: Any = getattr(ctx.attached, "low_rank", tuple)()
        found = [(site, a, b, s) for site, a, b, s in pairs if a.requires_grad and b.requires_grad]
        self._check(found, ctx)
        self._moments.clear()
        ctx.note(2 * len(found))

    @torch.no_grad()
    def gradients(self, named: Sequence[tuple[str, nn.Parameter]], ctx: Context) -> None:
        """Change the gradients of all pairs of factors in place. Raises Refused where there is none."""
        pairs: Any = getattr(ctx.attached, "low_rank", tuple)()
        found = [(site, a, b, s) for site, a, b, s in pairs if a.grad is not None and b.grad is not None]
        self._check(found, ctx)
        if ctx.step == 0:
            self._moments.clear()
        for site, a, b, s in found:
            on_a, on_b = projected(a, b, a.grad, b.grad, s, self.damping)
            if self.adam:
                step = self._moved(site, s * (b.to(on_a) @ on_a + on_b @ a.to(on_a)), ctx.step + 1)
                on_a, on_b = projected(a, b, s * b.to(step).T @ step, s * step @ a.to(step).T, s, self.damping)
            a.grad.copy_(on_a)
            b.grad.copy_(on_b)
            ctx.note(2)

    def _check(self, found: Sequence[tuple[str, nn.Parameter, nn.Parameter, float]], ctx: Context) -> None:
        if not found:
            adapted = getattr(getattr(ctx.attached, "adaptation", None), "id", "none")
            required = "an adaptation with two trained low-rank factors a weight"
            raise Refused(sentence(self.id, required, adapted, "Set adapt to lora with mode both, or drop lora_pro"))
        if any(hasattr(a, "full_tensor") for _, a, _, _ in found):
            do = "Train without sharding"
            raise Refused(sentence(self.id, "factors that are whole on each process", "sharded ones", do))
        rule = getattr(ctx.optimiser, "optimizer", ctx.optimiser)
        if self.adam and rule is not None and not isinstance(rule, torch.optim.SGD):
            do = "Set optimiser to sgd, or adam to false"
            raise Refused(sentence(f"{self.id} with adam", "the optimiser sgd", type(rule).__name__, do))

    def _moved(self, site: str, gradient: Tensor, count: int) -> Tensor:
        mean, square = self._moments.setdefault(
            site, (torch.zeros_like(gradient.float()), torch.zeros_like(gradient.float()))
        )
        mean.lerp_(gradient.float(), 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient.float(), gradient.float(), value=1 - self.beta2)
        size = (square.to(gradient) / (1 - self.beta2**count)).sqrt() + 1e-8
        return mean.to(gradient) / (1 - self.beta1**count) / size

    @property
    def _moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        if "_kept" not in self.__dict__:
            object.__setattr__(self, "_kept", {})
        return self.__dict__["_kept"]

    def state(self) -> dict[str, Any]:
        """Adam's moments by site."""
        kept = self._moments
        return (
            {"mean": {k: m for k, (m, _) in kept.items()}, "square": {k: v for k, (_, v) in kept.items()}}
            if kept
            else {}
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the moments."""
        means, squares = state["mean"], state["square"]
        object.__setattr__(self, "_kept", {k: (means[k].clone(), squares[k].clone()) for k in means})
