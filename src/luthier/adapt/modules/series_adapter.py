"""Series adapter: a small bottleneck network behind attention, feed-forward or linear layers reworks their output.

Paper: arXiv 2304.01933 (LLM-Adapters).   Formula: h <- h + s W_up f(W_down h), h the output of the layer.
Takes: a transformer, or linear layers by name.   Gives: two thin matrices a place; with f = identity they merge exactly.
Choose it when: the layer's output should be reshaped as a whole.   Rather not when: inference may not get slower.
Relatives: parallel_adapter (reads what the layer reads), lora (no curve, merges).

>>> import torch
>>> from luthier.adapt._bottleneck import bottleneck
>>> h, p = torch.tensor([1.0, -2.0]), {"down": torch.eye(2), "up": torch.eye(2)}
>>> (h + bottleneck(h, p, "relu", 0.5)).tolist()
[1.5, -2.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from luthier.adapt._bottleneck import Bottleneck
from luthier.core import Card, component

CARD = Card(
    name="Series adapter",
    source="arXiv 2304.01933",
    papers=(223,),
    cost="two thin layers one after the other at each place, in training and at inference; 2 m d parameters a place",
    limits=(
        "W_up = 0 at the start: the model is the base bit for bit",
        "activation identity without bias: the layer becomes (I + s W_up W_down) W, and its bias alike",
    ),
    differs=(
        "W_up starts at 0, as the released code offers by init_weights = mam_adapter; its default draws both from N(0, 0.02^2)",
        "a sublayer's adapter stands on its output projection, before the dropout that some models have there",
        "the released code puts adapters before the gate and up projections too; here they always follow a layer",
        "no dropout inside the bottleneck; forward compared with the formula read in the released code",
    ),
    use_when="you want a bottleneck that sees the output of the sublayer",
    avoid_when="the result must be plain weights, or inference may not get slower",
    relatives=("adapt.modules.parallel_adapter", "adapt.lowrank.lora"),
    mechanism="bottleneck adapters",
    tags=("starts_at_base",),
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SeriesAdapter(Bottleneck):
    """bottleneck: its width m. scaling: s; learn_scaling: times a trained factor that starts at 1. bias: of both layers.

    placement: behind the sublayers of this kind whose output projection is among the sites; linear: behind every site.
    """

    bottleneck: Annotated[int, Gt(0)] = 64
    activation: Literal["relu", "tanh", "gelu", "silu", "identity"] = "relu"
    scaling: Annotated[float, Gt(0)] = 1.0
    learn_scaling: bool = False
    bias: bool = False
    placement: Literal["mlp", "attention", "both", "linear"] = "mlp"
    beside: ClassVar[bool] = False
