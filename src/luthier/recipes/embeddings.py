"""Recipes of text encoders: pairs of texts to tokens, the guide's vectors, vectors as measures see them, the saved folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from luthier.core import MeasureContext, Reading
from luthier.core.errors import DataError, Refused, sentence
from luthier.models.encode import Encoded
from luthier.models.encoder import EncoderModule, EncoderView, LoadedEncoder, copy_beside, load_encoder
from luthier.recipes.pair_rows import paired, reading_pairs
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import Row, Rows, load_splits

BATCH = 64
"""Texts in one pass while measuring."""


@dataclass
class EmbeddingSubject:
    """The encoder as measures see it: texts to vectors. off: the context in which its adaptation is switched off."""

    module: EncoderModule
    tokenizer: Any
    limit: int
    off: Callable[[], AbstractContextManager[Any]] = nullcontext
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def embed(self, texts: Sequence[str], layer: int = 0) -> Tensor:
        """Texts -> (n, d) float32; layer counts from 1, 0 is the whole model. Texts that are too long are cut, as in use."""
        was, device = self.module.training, next(self.module.parameters()).device
        self.module.eval()
        out = []
        with self.around():
            for at in range(0, len(texts), BATCH):
                got = self.tokenizer(
                    list(texts[at : at + BATCH]),
                    padding=True,
                    truncation=True,
                    max_length=self.limit,
                    return_tensors="pt",
                )
                made = self.module(got["input_ids"].to(device), got["attention_mask"].to(device), layers=layer > 0)
                if layer and layer >= made.shape[1]:
                    raise DataError(sentence("retrieval", f"a layer up to {made.shape[1] - 1}", str(layer), "Lower it"))
                out.append((made[:, layer] if layer else made).float().cpu())
        self.module.train(was)
        return torch.cat(out)

    def base(self) -> EmbeddingSubject:
        """The encoder before training."""
        return EmbeddingSubject(self.module, self.tokenizer, self.limit, around=self.off)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise DataError(sentence("this measure", "a language model", "a text encoder", "Leave it out"))

    generate = logp = _refuse


@dataclass
class EncodedPairs:
    """Tokens of all training rows, a sequence for each part."""

    examples: list[tuple[Encoded, ...]]
    parts: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


@dataclass
class PairKit:
    """What a prepared embedding recipe has beside the common parts."""

    loaded: LoadedEncoder
    subject: EmbeddingSubject


def encode_pairs(rows: Rows, tokenizer: Any, limit: int, truncation: str) -> EncodedPairs:
    """Rows as tokens. Raises DataError naming the first text that is too long, unless `truncation` is "right" or "drop"."""
    parts = ("query", "positive", *(["negative"] if rows.rows and all("negative" in r for r in rows.rows) else []))
    ids = {p: tokenizer([r[p] for r in rows.rows])["input_ids"] for p in parts}
    long = [i for i in range(len(rows.rows)) if max(len(ids[p][i]) for p in parts) > limit]
    if long and truncation not in ("right", "drop"):
        raise DataError(sentence(f"{rows.path}, {rows.where(long[0])}", f"texts of at most {limit} tokens",
                                 f"{max(len(ids[p][long[0]]) for p in parts)} (and {len(long) - 1} more rows)",
                                 "Set data.truncation to right or drop"))  # fmt: skip
    if truncation == "right" and long:
        ids = {p: tokenizer([r[p] for r in rows.rows], truncation=True, max_length=limit)["input_ids"] for p in parts}
    out = set(long) if truncation == "drop" else set[int]()
    keep = [i for i in range(len(rows.rows)) if i not in out]
    rows.keep(keep)
    examples = [tuple(Encoded(tuple(ids[p][i]), (1,) * len(ids[p][i]), n) for p in parts) for n, i in enumerate(keep)]
    told = [
        f"{len(long)} rows have texts of more than {limit} tokens and are {'left out' if truncation == 'drop' else 'cut'}"
    ]
    return EncodedPairs(examples, parts, told if long else [])


def guide_columns(rows: Sequence[Row], parts: Sequence[str], recipe: Recipe, needs: Sequence[str]) -> dict[str, Tensor]:
    """Vectors of the recipe's `embedder` for every text, where the objective asks for a guide's."""
    from luthier.recipes.build import embedder

    if not any(n.startswith("guide_") for n in needs):
        return {}
    embed = embedder(recipe)
    if embed is None:
        raise Refused(sentence("this objective", "a guide model", "a recipe that names none", "Add `embedder: minilm`"))
    return {f"guide_{p}": embed([r[p] for r in rows]) for p in parts}


def prepare_embeddings(recipe: Recipe, out: Path | None, on_event: Any, accelerator: Any) -> Any:
    """Load, encode, attach: everything up to the first step of an embedding recipe."""
    from luthier.recipes.build import Prepared, attach_all, build_parts
    from luthier.train.feed import RowFeed
    from luthier.train.loop import Job
    from luthier.train.policy import Policy

    parts = build_parts(recipe)
    _check(recipe, accelerator)
    splits = load_splits(reading_pairs(recipe.data), recipe.seed)
    test = Rows(list(splits.test), "pairs", "", "", recipe.data.test or recipe.data.train)
    notes = [
        splits.train.statement,
        *splits.train.notes,
        *paired(splits.train, recipe.seed, "train"),
        *paired(test, 0, "test"),
    ]
    splits.test = test.rows
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    loaded = load_encoder(recipe.model, recipe.dtype)
    model: Any = loaded.module.model
    if recipe.train.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    limit = min(loaded.limit, recipe.data.max_length or loaded.limit)
    encoded = encode_pairs(splits.train, loaded.tokenizer, limit, recipe.data.truncation)
    notes += encoded.notes
    if len(encoded.examples) < recipe.train.batch:
        raise Refused(sentence("train.batch", f"at most the {len(encoded.examples)} rows, so that no row is its own negative",
                               str(recipe.train.batch), "Lower it"))  # fmt: skip
    columns = guide_columns(splits.train.rows, encoded.parts, recipe, parts.objective.needs.signals)
    attached = attach_all(model, parts.adapt, recipe.seed)
    if accelerator is not None:
        model.to(accelerator.device)
    policy = Policy(EncoderView(loaded.module), attached, None, loaded.tokenizer)
    feed = RowFeed(encoded.examples, "pairs", encoded.parts, int(loaded.tokenizer.pad_token_id), recipe.train.batch, recipe.seed,
                   columns=columns)  # fmt: skip
    job = Job(policy, parts.objective, feed, recipe.train, parts.optimiser, parts.schedule, parts.hooks, recipe.seed, out,
              f"{recipe.identity}:{splits.train.fingerprint}", accelerator, on_event)  # fmt: skip
    subject = EmbeddingSubject(loaded.module, loaded.tokenizer, limit, attached.disabled)
    return Prepared(recipe, parts, splits, encoded, policy, feed, job, notes, PairKit(loaded, subject))


def _check(recipe: Recipe, accelerator: Any) -> None:
    """Raise Refused for what would change the loss, or would be ignored."""
    train = recipe.train
    if train.micro is not None and train.micro < train.batch:
        raise Refused(sentence("train.micro", f"the whole batch ({train.batch}), since its rows are one another's negatives",
                               str(train.micro), "Leave it out, or lower train.batch; train.checkpointing saves memory"))  # fmt: skip
    if accelerator is not None and accelerator.num_processes > 1:
        raise Refused(sentence("an in-batch loss", "one process, since the rows of a batch are one another's negatives",
                               str(accelerator.num_processes), "Start one process"))  # fmt: skip
    data = recipe.data
    idle = {"data.steps": data.steps, "data.old": data.old, "data.retain": data.retain, "teacher": recipe.teacher,
            "loop": recipe.loop, "tokenizer": recipe.tokenizer}  # fmt: skip
    if given := [k for k, v in idle.items() if v]:
        raise Refused(sentence("training on pairs of texts", "only keys that it reads", given[0], "Remove it"))


def measure_pairs(prepared: Any, cost: Mapping[str, float]) -> list[Reading]:
    """All readings of the recipe's measures on its test rows."""
    ctx = MeasureContext(prepared.recipe.seed, cost=dict(cost))
    return [r for one in prepared.parts.measures for r in one(prepared.kit.subject, prepared.splits.test, ctx)]


def pair_faults(prepared: Any) -> list[str]:
    """Sentences on parts of suites that are left out. Raises Refused for a measure of other models that was named."""
    named = [m for m in prepared.recipe.measure if isinstance(m, str | dict)]
    short = {next(iter(m)) if isinstance(m, dict) else m for m in named}
    other = [
        m for m in prepared.parts.measures if "pairs" not in m.needs.batch and not m.id.startswith("measure.cost.")
    ]
    if faults := [sentence(f"measure {m.name}", "a language model", "a text encoder", "Leave it out; use retrieval")
                  for m in other if short & {m.name, m.id}]:  # fmt: skip
        raise Refused("\n".join(dict.fromkeys(faults)))
    if len(prepared.splits.test) < 2 and any("pairs" in m.needs.batch for m in prepared.parts.measures):
        raise Refused(
            sentence(
                "measure retrieval", "at least two test rows", str(len(prepared.splits.test)), "Raise data.holdout"
            )
        )
    prepared.parts.measures[:] = [m for m in prepared.parts.measures if m not in other]
    return [f"{m.id} is left out: it does not fit a text encoder" for m in other]


def write_merged_encoder(loaded: LoadedEncoder, attached: Any, folder: Path, main: bool = True) -> None:
    """The adapted weights folded into the encoder, as a folder that sentence-transformers loads with the same modules."""
    from luthier.recipes.export import write_folded

    write_folded(loaded.module.model, attached, loaded.tokenizer, folder / loaded.part, main)
    if main:
        copy_beside(loaded, folder)
