"""Kinds of models. A new kind is one `Kind` here with its `Kit`: nothing else asks what a recipe is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core import Reading

if TYPE_CHECKING:
    from luthier.recipes.build import Prepared
    from luthier.recipes.plan import Plan
    from luthier.recipes.recipe import Recipe


class Kit(Protocol):
    """What a kind of model brings to a prepared recipe.

    subject: the model as measures see it. faults: sentences on parts of suites that are left out, before anything is trained;
    raises Refused where a named measure could not run. samples: a few things made by the model, for people to look at.
    write_merged: collective where weights are sharded, only the main process writes; raises Refused where it cannot be.
    """

    def subject(self, prepared: Prepared) -> Any: ...

    def faults(self, prepared: Prepared) -> list[str]: ...

    def measure(self, prepared: Prepared, cost: Mapping[str, float]) -> list[Reading]: ...

    def samples(self, prepared: Prepared) -> list[dict[str, Any]]: ...

    def write_merged(self, prepared: Prepared, folder: Path, main: bool = True) -> None: ...


class Kind(Protocol):
    """Recipes about one kind of model: made ready, planned, and finished runs written in the forms of other tools.

    exports: names of these forms. export: `run` is the folder of a finished run, `out` a new one; raises Refused where the
    adaptation has no such form.
    """

    exports: tuple[str, ...]

    def prepare(self, recipe: Recipe, out: Path | None, on_event: Any, accelerator: Any) -> Prepared: ...

    def plan(self, recipe: Recipe) -> Plan: ...

    def export(self, recipe: Recipe, run: Path, to: str, out: Path) -> None: ...


def kind_of(recipe: Recipe) -> Kind:
    """The kind of model that a recipe is about, by its model's folder and its objective's card."""
    from luthier.recipes.image_check import is_image
    from luthier.recipes.pair_rows import is_pairs

    if is_image(recipe.model, recipe.objective):
        from luthier.recipes.image_kit import Images

        return Images()
    if is_pairs(recipe.objective):
        from luthier.recipes.pair_kit import Pairs

        return Pairs()
    from luthier.recipes.text_kit import Texts

    return Texts()
