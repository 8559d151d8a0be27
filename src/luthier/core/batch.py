"""What one step sees: tensors, the parts that they are made of, and the rows that they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

KINDS = (
    "text",
    "preference",
    "scored",
    "feedback",
    "judged",
    "set",
    "prompts",
    "group",
    "image",
    "image_preference",
    "image_prompts",
    "pairs",
)
CONDITION = "condition."


@dataclass(frozen=True)
class Batch:
    """A batch of one kind of data.

    kind: "text" (one part), "preference" (parts chosen, rejected), "group" (sampled completions), "image", ...
    parts: names of the parts; `inputs` hold them stacked along the first axis: part p is rows [p * B, (p + 1) * B).
    inputs: for language input_ids, attention_mask (P*B, T) and loss_mask (P*B, T), 1 where the token itself is trained; for
    images `image` (P*B, C, H, W) and what they are conditioned on under names that begin with "condition.".
    columns: one value or vector per row, (B, ...), handed to objectives as signals (advantage, weight, group, ...).
    rows: number of each row in the data. meta: the source rows (answers, prompts), for rewards and messages.
    """

    kind: str
    inputs: Mapping[str, Tensor]
    parts: tuple[str, ...] = ("text",)
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    rows: tuple[int, ...] = ()
    meta: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        """Number of rows B (each row has all parts); packed batches say in `home` where their sequences lie."""
        if "home" in self.inputs:
            return self.inputs["home"].shape[0] // len(self.parts)
        return next(iter(self.inputs.values())).shape[0] // len(self.parts)

    def condition(self, part: str = "") -> dict[str, Tensor]:
        """What the images of a part (the first by default) are conditioned on, by the model's own names; may be empty."""
        if part and part not in self.parts:
            raise KeyError(unknown("part", part, self.parts))
        at, size = (self.parts.index(part) if part else 0), len(self)
        return {k.removeprefix(CONDITION): v[at * size : (at + 1) * size]
                for k, v in self.inputs.items() if k.startswith(CONDITION)}  # fmt: skip

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        move = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        return replace(self, inputs=move, columns={k: v.to(device, non_blocking=True) for k, v in self.columns.items()})

    def with_inputs(self, **changed: Tensor) -> Batch:
        """The same batch with some inputs replaced; a new loss_mask drops the list of trained positions made from the old."""
        kept = {k: v for k, v in self.inputs.items() if k != "trained" or "loss_mask" not in changed}
        return replace(self, inputs={**kept, **changed})
