"""Parallel adapter: a small bottleneck network beside attention, feed-forward or linear layers adds to their output.

Paper: arXiv 2304.01933 (LLM-Adapters); 2110.04366 (the unified view; scaled parallel adapter).
Formula: h <- layer(x) + s W_up f(W_down x), x what the layer reads; 2110.04366 has s = 4 beside the feed-forward.
Takes: a transformer, or linear layers by name.   Gives: two thin matrices a place; at linear layers f = identity is LoRA.
Choose it when: more capacity than LoRA's is wanted beside the feed-forward.   Rather not when: plain weights are needed.
Relatives: series_adapter (reads the layer's output), lora (no curve, merges), peft (prefixes).

The MAM adapter of 2110.04366 is this one at the feed-forward and short prefixes at attention:

    adapt:
      - parallel_adapter: {bottleneck: 512, scaling: 4}
      - peft: {method: PREFIX_TUNING, config: {num_virtual_tokens: 30}}

>>> import torch
>>> from luthier.adapt._bottleneck import bottleneck
>>> x, p = torch.tensor([1.0, -2.0]), {"down": torch.eye(2), "up": torch.eye(2)}
>>> bottleneck(x, p, "relu", 4.0).tolist()
[4.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from luthier.adapt._bottleneck import Bottleneck
from luthier.core import Card, component

CARD = Card(
    name="Parallel adapter",
    source="arXiv 2304.01933 and 2110.04366 (scaled parallel adapter)",
    papers=(223, 141),
    cost="two thin layers beside each place, in training and at inference; 2 m d parameters a place",
    limits=(
        "W_up = 0 at the start: the model is the base bit for bit",
        "placement linear, activation identity, no bias: LoRA with A = W_down, B = W_up and the same s; merges exactly",
    ),
    differs=(
        "W_down is drawn as LoRA's A and W_up is 0, as both papers' code offers; LLM-Adapters' default is N(0, 0.02^2) for both",
        "no dropout and no layer norm inside the bottleneck, biases only on request; the code of 2110.04366 always has biases",
        "placement linear is what the code of LLM-Adapters does; placement mlp and attention are those of 2110.04366",
        "models whose sublayer is not one module (BERT, OPT) are refused unless placement is linear",
        "forward compared with the formula read in the released code of both papers",
    ),
    use_when="you want a bottleneck with a curve that reads what the sublayer reads",
    avoid_when="the result must be plain weights, or inference may not get slower",
    relatives=("adapt.modules.series_adapter", "adapt.lowrank.lora"),
    mechanism="bottleneck adapters",
    tags=("starts_at_base",),
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ParallelAdapter(Bottleneck):
    """bottleneck: its width m. scaling: s; learn_scaling: times a trained factor that starts at 1. bias: of both layers.

    placement: beside the sublayers of this kind whose output projection is among the sites; linear: beside every site.
    """

    bottleneck: Annotated[int, Gt(0)] = 64
    activation: Literal["relu", "tanh", "gelu", "silu", "identity"] = "relu"
    scaling: Annotated[float, Gt(0)] = 1.0
    learn_scaling: bool = False
    bias: bool = False
    placement: Literal["mlp", "attention", "both", "linear"] = "mlp"
    beside: ClassVar[bool] = True
