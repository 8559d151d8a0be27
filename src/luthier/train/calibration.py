"""What an adaptation may look at before the first step: activations and gradients of the first batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.protocols import Context, Objective
from luthier.train.feed import Feed
from luthier.train.policy import Policy
from luthier.train.step import Stepper


@dataclass
class FeedCalibration:
    """The first `batches` steps' rows, as the run will see them; every process sees the same.

    The passes count as "calibration" in the cost. Dropout is off.
    """

    policy: Policy
    objective: Objective
    feed: Feed
    context: Callable[[int], Context]
    batches: int
    seed: int

    def _micros(self, step: int) -> list[Batch]:
        device = next(self.policy.view.module.parameters()).device
        return [b.to(device) for b in self.feed.micros(step)]

    def forwards(self) -> Iterator[Batch]:
        """Each batch after its forward pass in evaluation mode, without gradient; forward hooks see what flows."""
        with self._evaluating():
            for step in range(self.batches):
                for batch in self._micros(step):
                    with torch.no_grad():
                        self.policy.signals(batch, self.objective.needs.signals, "calibration")
                    yield batch

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[int]:
        """For each step of rows: `p.grad` is the gradient of its loss for exactly these parameters; yields the step.

        Gradients are fresh at each turn and gone at the end; what requires gradients afterwards is as before.
        """
        everything = [*self.policy.view.module.parameters(), *parameters]
        before = [(p, p.requires_grad) for p in everything]
        chosen = {id(p) for p in parameters}
        for p in everything:
            p.requires_grad_(id(p) in chosen)
        stepper = Stepper(self.policy, self.objective, (), _same, torch.Tensor.backward, ExitStack, kind="calibration")
        try:
            with self._evaluating():
                for step in range(self.batches):
                    stepper(self._micros(step), self.context(step), parameters)
                    yield step
                    for p in parameters:
                        p.grad = None
        finally:
            for p, flag in before:
                p.requires_grad_(flag)
                p.grad = None

    def _evaluating(self) -> ExitStack:
        module, stack = self.policy.view.module, ExitStack()
        if module.training:
            stack.callback(module.train)
        module.eval()
        return stack


def _same(tensor: Tensor) -> Tensor:
    return tensor
