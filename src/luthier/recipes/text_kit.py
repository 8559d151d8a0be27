"""Language models as a kind: the subject of their measures, faults told before training, samples, the written model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core import MeasureContext, Reading
from luthier.core.errors import DataError, ModelError, Refused, sentence
from luthier.measure.suites import SUITES, have, lacks, split
from luthier.recipes.build import Parts, Prepared, build_decode, build_measures, embedder
from luthier.recipes.plan import Plan
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import measured
from luthier.recipes.text import renderer
from luthier.train.policy import Policy


class Texts:
    """Recipes of language models."""

    exports: tuple[str, ...] = ("merged", "peft")

    def prepare(self, recipe: Recipe, out: Path | None, on_event: Any, accelerator: Any) -> Prepared:
        """Load, encode, attach."""
        from luthier.recipes.build import prepare_text

        made = prepare_text(recipe, out, on_event, accelerator)
        made.kit = TextKit(recipe, made.parts, made.policy, made.helpers)
        return made

    def plan(self, recipe: Recipe) -> Plan:
        """Predict the run's cost."""
        from luthier.recipes.plan import plan_text

        return plan_text(recipe)

    def export(self, recipe: Recipe, run: Path, to: str, out: Path) -> None:
        """A transformers folder, or a PEFT checkpoint."""
        from luthier.recipes.export import export_text

        export_text(run, to, out)


@dataclass
class TextKit:
    """A prepared recipe of a language model. helpers: models that decoding components listen to."""

    recipe: Recipe
    parts: Parts
    policy: Policy
    helpers: Mapping[str, Any]

    @property
    def subject(self) -> Any:
        """The language model as measures see it."""
        from luthier.models.changes import changes_of
        from luthier.models.subject import LanguageSubject

        policy, recipe = self.policy, self.recipe
        text = renderer(policy.tokenizer, recipe.data, policy.view.module.model.config)
        return LanguageSubject(policy.view.module, policy.tokenizer, text.renders, text.pairs, text.stop, recipe.seed,
                               off=policy.attached.disabled, decode=build_decode(recipe.decode), helpers=self.helpers,
                               changed=changes_of(policy.view.module.model, policy.attached,
                                                  [a for a, _ in self.parts.adapt]))  # fmt: skip

    def measure(self, prepared: Prepared, cost: Mapping[str, float]) -> list[Reading]:
        """All readings of the recipe's measures on its test rows."""
        splits, recipe = prepared.splits, prepared.recipe
        ctx = MeasureContext(
            recipe.seed, embedder(recipe), splits.verify, dict(cost), measured(splits.old), splits.truth
        )
        subject, rows = self.subject, measured(splits.test)
        chosen, _ = chosen_measures(recipe, have(rows, ctx, subject))
        readings: list[Reading] = []
        for one in chosen:
            readings += list(one(subject, rows, ctx))
        return readings

    def faults(self, prepared: Prepared) -> list[str]:
        """What suites leave out. Raises Refused for a measure whose data are missing, or that would not fit the context."""
        splits, subject, rows = prepared.splits, self.subject, measured(prepared.splits.test)
        ctx = MeasureContext(
            0, embedder(prepared.recipe), splits.verify, {"steps": 0.0}, measured(splits.old), splits.truth
        )
        there = have(rows, ctx, subject)
        chosen, left = chosen_measures(prepared.recipe, there)
        came = f"{len(rows)} test rows with {', '.join(sorted(there - {'cost', 'tokens'})) or 'nothing'}"
        faults = [sentence(f"measure {m.name}", what, came, "Add it to the test data, or leave this measure out")
                  for m in chosen if (what := lacks(m.id, there))]  # fmt: skip
        writing = [m for m in chosen if hasattr(m, "max_new") and m.name != "old_data"]
        context = getattr(self.policy.view.module.model.config.get_text_config(), "max_position_embeddings", None)
        if writing and context and not faults:
            asked = [r["prompt"] for r in rows]
            longest = {new: max(map(len, subject.renders(asked, new))) for new in {m.max_new for m in writing}}
            faults = [sentence(f"measure {m.name}", f"prompt + max_new <= {context} tokens", f"{longest[m.max_new]} + {m.max_new}",
                               "Lower its max_new, shorten the test prompts, or set data.truncation to prompt")
                      for m in writing if longest[m.max_new] + m.max_new > context]  # fmt: skip
        if faults:
            raise Refused("\n".join(dict.fromkeys(faults)))
        return left

    def samples(self, prepared: Prepared, count: int = 4, each: int = 2, max_new: int = 48) -> list[dict[str, Any]]:
        """A few generations for people to look at."""
        rows = measured(prepared.splits.test[:count])
        if not rows or (prepared.splits.train.kind == "preference" and not rows[0].get("prompt")):
            return []
        try:
            made = self.subject.generate([r["prompt"] for r in rows], samples=each, max_new=max_new, role="samples")
        except (DataError, ModelError) as fault:
            prepared.notes.append(f"no samples are shown: {fault}")
            return []
        return [
            {"prompt": _shown(r["prompt"]), "reference": r["response"], "outputs": o}
            for r, o in zip(rows, made, strict=True)
        ]

    def write_merged(self, prepared: Prepared, folder: Path, main: bool = True) -> None:
        """The adapted weights folded into the base, as one transformers folder; the live model is left as it is."""
        from luthier.recipes.export import write_folded

        write_folded(self.policy.view.module.model, self.policy.attached, self.policy.tokenizer, folder, main)


def chosen_measures(recipe: Recipe, there: set[str]) -> tuple[list[Any], list[str]]:
    """Measures to run, and a sentence for each part of a suite that the data do not allow; named ones always run."""
    named = build_measures([m for m in recipe.measure if not (isinstance(m, str) and m in SUITES)])
    suites = build_measures([m for m in recipe.measure if isinstance(m, str) and m in SUITES])
    fine, missing = split(suites, there)
    told = [f"{ident} is left out: the test data have no {what}" for ident, what in missing.items()]
    seen = {repr(m) for m in named}
    return named + [m for m in fine if repr(m) not in seen], told


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(m.get("content", "")) for m in prompt)
