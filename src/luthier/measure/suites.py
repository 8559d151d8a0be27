"""Names for sets of measures, as a recipe writes them: `measure: [quality, diversity, forgetting]`.

A suite is asked for by what it is about, so its parts are run where the data allow: `split` says which can and, for
each that cannot, what it lacks. A measure that is named by itself is never left out; it raises the error itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.core import Measure, MeasureContext, Row, Subject

Spec = Mapping[str, Mapping[str, Any]]

SUITES: Mapping[str, tuple[Spec, ...]] = {
    "quality": (
        {"measure.quality.likelihood": {}},
        {"measure.quality.exact_match": {}},
        {"measure.quality.pass_at_k": {"k": [8], "samples": 8}},
        {"measure.quality.pair_accuracy": {}},
    ),
    "diversity": (
        {"measure.diversity.ngram": {"scope": "per_input"}},
        {"measure.diversity.ngram": {"scope": "across_inputs"}},
        {"measure.diversity.embedding": {"scope": "per_input"}},
        {"measure.diversity.embedding": {"scope": "across_inputs"}},
        {"measure.diversity.vendi": {"scope": "per_input"}},
        {"measure.diversity.vendi": {"scope": "across_inputs"}},
        {"measure.diversity.novelsum": {}},
        {"measure.diversity.truth": {}},
    ),
    "gradients": ({"measure.diversity.g_vendi": {}},),
    "consistency": (
        {"measure.consistency.paraphrase": {}},
        {"measure.consistency.generator_validator": {}},
    ),
    "forgetting": ({"measure.forgetting.old_data": {}},),
    "calibration": ({"measure.calibration.ece": {}}, {"measure.calibration.brier": {}}),
    "uncertainty": ({"measure.calibration.semantic_entropy": {}}, {"measure.calibration.abstention": {}}),
    "cost": ({"measure.cost.cost": {}},),
    "drift": ({"measure.diagnose.token_shift": {}}, {"measure.diagnose.tuco": {}}),
    "dynamics": ({"measure.diagnose.learning_dynamics": {}},),
    "editing": ({"measure.quality.edit_success": {}},),
    "hidden": ({"measure.diagnose.conjugate_probe": {}},),
    "weights": ({"measure.diagnose.intruder_dimensions": {}},),
    "images": (
        {"measure.images.attribute_accuracy": {}},
        {"measure.images.attribute_entropy": {}},
        {"measure.images.image_vendi": {}},
        {"measure.images.denoising_error": {}},
        {"measure.images.energy_distance": {}},
        {"measure.images.image_drift": {}},
    ),
    "vectors": ({"measure.embed.retrieval": {}},),
}

# What each measure asks for, by id: all groups, any name of a group. Names are row fields, or one of the handles
# verify, truth, old, cost, tokens, gradients, weights, blocks.
ASKS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "measure.quality.likelihood": (("response",),),
    "measure.quality.exact_match": (("prompt",), ("answer", "verify")),
    "measure.quality.pass_at_k": (("prompt",), ("answer", "verify")),
    "measure.quality.pair_accuracy": (("prompt",), ("chosen",), ("rejected",)),
    "measure.quality.edit_success": (("prompt",), ("answer",), ("paraphrase",), ("locality",)),
    "measure.diversity.ngram": (("prompt",),),
    "measure.diversity.embedding": (("prompt",),),
    "measure.diversity.vendi": (("prompt",),),
    "measure.diversity.novelsum": (("prompt",), ("response",)),
    "measure.diversity.g_vendi": (("prompt",), ("gradients",)),
    "measure.diversity.truth": (("prompt",), ("truth",)),
    "measure.consistency.paraphrase": (("prompt",), ("paraphrase",)),
    "measure.consistency.generator_validator": (("prompt",),),
    "measure.forgetting.old_data": (("old",),),
    "measure.calibration.ece": (("prompt",), ("answer", "verify")),
    "measure.calibration.brier": (("prompt",), ("answer", "verify")),
    "measure.calibration.semantic_entropy": (("prompt",),),
    "measure.calibration.abstention": (("prompt",), ("answer", "verify")),
    "measure.cost.cost": (("cost",),),
    "measure.diagnose.token_shift": (("prompt",), ("tokens",)),
    "measure.diagnose.tuco": (("prompt",), ("blocks",)),
    "measure.diagnose.learning_dynamics": (("prompt",), ("chosen",), ("rejected",), ("tokens",)),
    "measure.diagnose.conjugate_probe": (("prompt",), ("answer",), ("conjugate",), ("conjugate_answer",)),
    "measure.diagnose.intruder_dimensions": (("weights",),),
    "measure.images.attribute_accuracy": (("images",),),
    "measure.images.attribute_entropy": (("images",),),
    "measure.images.image_vendi": (("images",),),
    "measure.images.denoising_error": (("images",),),
    "measure.images.energy_distance": (("images",),),
    "measure.images.image_drift": (("images",),),
    "measure.images.image_reward": (("images",),),
    "measure.embed.retrieval": (("query",), ("positive",)),
}


def have(rows: Sequence[Row], ctx: MeasureContext, subject: Subject | None = None) -> set[str]:
    """Fields that every row carries, and the handles that are there."""
    from luthier.measure._rows import has

    fields = {f for f in (rows[0] if rows else ()) if all(has(r, f) for r in rows)}
    handles = {
        "verify": ctx.verify is not None,
        "old": bool(ctx.old),
        "cost": bool(ctx.cost),
        "tokens": hasattr(subject, "token_table"),
        "gradients": hasattr(subject, "gradients"),
        "blocks": hasattr(subject, "contributions") and getattr(subject, "interleaves", lambda: True)(),
        "weights": getattr(subject, "changed", None) is not None,
        "truth": ctx.truth is not None and any(ctx.truth(r) for r in rows),
    }
    return {*fields, *(name for name, there in handles.items() if there)}


def lacks(ident: str, there: Collection[str]) -> str:
    """What a measure lacks, in words; empty if it can run.

    >>> lacks("measure.quality.exact_match", {"prompt"})
    'answer or verify'
    """
    return ", ".join(" or ".join(group) for group in ASKS.get(ident, ()) if not set(group) & set(there))


def split(measures: Sequence[Measure], there: Collection[str]) -> tuple[list[Measure], dict[str, str]]:
    """(measures that can run, id -> what it lacks for the others)."""
    return [m for m in measures if not lacks(m.id, there)], {
        m.id: lacks(m.id, there) for m in measures if lacks(m.id, there)
    }
