"""Sites: patterns find exactly what they say, and one that finds nothing is an error with the nearest names."""

from __future__ import annotations

import pytest

from luthier.core import Site, Sites
from luthier.core.errors import NoEffect
from luthier.core.sites import block_of, depth_of

ROLES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
MODEL = [
    Site("model.embed_tokens", "embedding"),
    *(Site(f"model.layers.{b}.{r}", "linear", b) for b in range(12) for r in ROLES),
    Site("model.norm", "norm"),
    Site("lm_head", "linear", head=True),
]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("all-linear", 48), ("*", 48), ("attention", 24), ("mlp", 24), ("q_proj", 12), ("*.1.*", 4), ("lm_head", 1),
        ("q_proj, k_proj", 24), ("q_proj,*q_proj", 12), ("model.layers.1?.*", 8), (" mlp , lm_head ", 25),
    ],
)  # fmt: skip
def test_patterns_find_what_they_say_in_the_models_order(pattern, count):
    found = Sites(pattern).choose(MODEL)
    assert len(found) == count
    assert found == [s for s in MODEL if s in found]


def test_kinds_are_a_condition_of_their_own():
    assert [s.name for s in Sites("*", ("embedding", "norm")).choose(MODEL)] == ["model.embed_tokens", "model.norm"]
    with pytest.raises(NoEffect, match=r"matches 0 of 0 conv sites\. Nearest names: none"):
        Sites("*", ("conv",)).choose(MODEL)


@pytest.mark.parametrize("pattern", ["q_prj", "q_proj, q_prj", "model.layers.99.*", "Q_PROJ"])
def test_a_pattern_without_a_site_is_an_error_even_beside_one_that_has_some(pattern):
    with pytest.raises(
        NoEffect, match=r"lora requires sites that exist; the pattern .* matches 0 of 49 linear sites"
    ) as caught:
        Sites(pattern).choose(MODEL, "lora")
    assert "q_proj" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "block", "depth"),
    [
        ("model.layers.3.mlp.up_proj", 3, 0.3), ("transformer.h.10.attn", 10, 1.0), ("model.embed_tokens", -1, 0.0),
        ("transformer.wpe", -1, 0.0), ("lm_head", -1, 1.0), ("vision.encoder.layer.0.x", 0, 0.0), ("players.7.x", -1, 1.0),
    ],
)  # fmt: skip
def test_blocks_and_depths_are_read_from_names(name, block, depth):
    assert block_of(name) == block
    assert depth_of(name, 11) == pytest.approx(depth)
    assert depth_of("layers.0.x", 1) == 1.0
