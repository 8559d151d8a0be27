"""One run of each composition: three steps on a tiny real model, stopped after the second, resumed, merged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.config import as_dict
from luthier.core.errors import LuthierError
from luthier.core.files import write_tensors
from luthier.core.registry import Entry
from luthier.recipes.build import cache_reference, prepare
from luthier.recipes.composition import inner, models, reads
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.objectives.test_rooms import EXAMPLES
from tests.recipes.parts import SYLLABLES, WORDS, chat_rows, encoder_folder, model_folder, pair_rows, write

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
PARAMETERS = {
    "adapt.lowrank.eva": {"rank": 2, "calibration": 4},
    "adapt.sparse.lt_sft": {"steps": 3},
    "objectives.contrastive.matryoshka": {"dims": [16, 8]},
    "objectives.contrastive.starbucks": {"layers": [1, 2], "dims": [8, 16]},
}
"""Where the defaults are meant for models of another size, or for more steps of choosing what trains."""
SAMPLED = {"reward": {"format": {"pattern": "w[0-9]( .*)?"}}, "rollout": {"group": 4, "max_new": 6}}


@dataclass(frozen=True)
class Cell:
    """One composition: an adaptation, an objective, and perhaps a regulariser."""

    adapt: Entry
    objective: Entry
    hook: Entry | None = None

    def __str__(self) -> str:
        return "-".join(e.short for e in self.parts)

    @property
    def parts(self) -> tuple[Entry, ...]:
        return (self.adapt, self.objective, *([self.hook] if self.hook else []))

    @property
    def objectives(self) -> list[Entry]:
        """The objective and what it wraps."""
        return [self.objective, *inner(self.objective, spec_of(self.objective), (self.objective.room,))]

    @property
    def model(self) -> str:
        """The kind of model that the objective trains."""
        return models(self.objective)[0]


def spec_of(entry: Entry) -> Any:
    """A technique as a recipe writes it, with an example where it has no defaults that fit a tiny model."""
    return as_dict(EXAMPLES[entry.id]) if entry.id in EXAMPLES else {entry.id: PARAMETERS.get(entry.id, {})}


def places(at: Path) -> Path:
    """Tiny models, and a file of rows for each kind of data."""
    model_folder(at / "language model")
    encoder_folder(at / "text encoder")
    said = [[m["content"] for m in row["messages"]] for row in chat_rows(12)]
    write(at / "text.jsonl", chat_rows(12))
    numbers = {"gap": 1.5, "consistency": 0.75, "weight": 0.5}
    write(at / "preference.jsonl", [{**row, **numbers} for row in pair_rows(12)])
    write(at / "scored.jsonl", [{"prompt": p, "responses": [a, a.split()[0]], "scores": [1, 0.5]} for p, a in said])
    judged = [{"prompt": p, "response": a, "judgment": "w1 w2" if i % 2 else ""} for i, (p, a) in enumerate(said)]
    write(at / "judged.jsonl", judged)
    write(at / "set.jsonl", [{"prompt": p, "responses": [a, a.split()[0]], "tags": WORDS[:3]} for p, a in said])
    write(at / "pairs.jsonl", [{"anchor": f"{w} bo", "positive": f"{w} du"} for w in SYLLABLES[:12]])
    write_tensors(at / "directions.safetensors", {"block.0": torch.eye(16)[:1]})
    return at


def recipe_of(cell: Cell, at: Path) -> dict[str, Any]:
    """The composition as a recipe on the tiny model that its objective trains, with what its cards ask for."""
    needs = [e.card.needs for e in (*cell.parts, *cell.objectives)]
    asked, signals = {h for n in needs for h in n.handles}, {s for n in needs for s in n.signals}
    # the first kind of data that all can read, of those that the tiny files hold
    shared = [k for k in reads(cell.objectives[-1]) if all(k in reads(e) for e in (*cell.parts, *cell.objectives))]
    kind = next((k for k in shared if k == "group" or (at / f"{k}.jsonl").is_file()), reads(cell.objectives[-1])[0])
    rows = at / f"{'text' if kind == 'group' else kind}.jsonl"
    plain: dict[str, Any] = {
        "model": str(at / cell.model), "adapt": spec_of(cell.adapt), "objective": spec_of(cell.objective),
        "data": {"train": str(rows), "holdout": 2, "test_rows": 2},
        "train": {"steps": 3, "batch": 4, "lr": 1e-2, "save_every": 2}, **(SAMPLED if kind == "group" else {}),
    }  # fmt: skip
    if cell.hook is not None:
        named = {p.name for p in cell.hook.parameters}
        own = {"directions": str(at / "directions.safetensors")} if "directions" in named else {}
        plain["regularise"] = [{cell.hook.id: own}]
    plain["data"] |= {"retain": str(at / "text.jsonl"), "retain_rows": 4} if "retain" in asked else {}
    plain |= {"teacher": str(at / "language model")} if asked & {"teacher"} or "topk_id" in signals else {}
    return plain | ({"embedder": str(at / "text encoder")} if "embed" in asked else {})


@dataclass
class Seen:
    """What became of a composition: a refusal with the number of steps that were made before it, or a whole run."""

    refused: str = ""
    steps: int = 0


def ready(plain: dict[str, Any], out: Path, seen: Seen) -> Any:
    """The prepared run, counting its steps."""

    def tell(event: Any) -> None:
        seen.steps += event["kind"] == "step"

    made = prepare(parse(plain), out, tell)
    cache_reference(made)
    return made


def outputs(prepared: Any) -> Tensor:
    """What the live model makes of two fixed rows."""
    model = prepared.policy.view.module.model.eval()
    with torch.no_grad():
        made = model(input_ids=IDS)
    return made.logits if hasattr(made, "logits") else made.last_hidden_state


def tried(cell: Cell, at: Path, out: Path) -> Seen:
    """Run a composition, resume it from its checkpoint, merge it. Any error but a refusal of Luthier's is raised."""
    seen, plain = Seen(), recipe_of(cell, at)
    try:
        whole = ready(plain, out, seen)
        outcome = Loop(whole.job).run()
    except LuthierError as fault:
        return Seen(str(fault), seen.steps)
    assert (outcome.steps, seen.steps) == (3, 3)
    again = ready(plain, out, seen)
    assert Loop(again.job).run(resume=True).steps == 3
    assert seen.steps == 4, "only the third step is made again"
    check_same_bits(whole, again)
    check_merge(whole)
    return seen


def check_same_bits(one: Any, other: Any) -> None:
    """Two runs ended with the same finite tensors."""
    a, b = one.policy.attached.state(), other.policy.attached.state()
    assert a.keys() == b.keys() and a
    assert [k for k in a if not torch.equal(a[k], b[k])] == [], "the resumed run has other bits"
    assert all(torch.isfinite(t).all() for t in a.values() if t.is_floating_point())


def check_merge(prepared: Any) -> None:
    """The merged model is the adapted one to rounding; one that can never be merged refuses in the words of its class."""
    want, ((adaptation, _),) = outputs(prepared), prepared.parts.adapt
    assert adaptation.merge.kind == "exact" or "exact_merge" not in adaptation.card.tags
    if adaptation.merge.kind == "never":
        with pytest.raises(LuthierError, match=re.escape(adaptation.merge.why)):
            prepared.policy.attached.merge_into_model()
        return
    prepared.policy.attached.merge_into_model()
    torch.testing.assert_close(outputs(prepared), want, rtol=1e-4, atol=1e-5)
