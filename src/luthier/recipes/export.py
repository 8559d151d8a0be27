"""Runs as files other tools read: a merged transformers model, a PEFT checkpoint; and runs read back."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch

from luthier.core.errors import ModelError, OutputError, Refused, sentence
from luthier.core.files import read_json, read_tensors, whole_folder
from luthier.recipes.build import Prepared, attach_all, build_adapt, build_decode, model_source
from luthier.recipes.recipe import Recipe, parse
from luthier.train.sharding import gathered


def write_merged(prepared: Prepared, folder: Path, main: bool = True) -> None:
    """The adapted weights folded into the base, as one transformers folder; the live model is left as it is."""
    model: Any = prepared.policy.view.module.model
    write_folded(model, prepared.policy.attached, prepared.policy.tokenizer, folder, main)


def write_folded(model: Any, attached: Any, tokenizer: Any, folder: Path, main: bool = True) -> None:
    """Write base weights with `attached.merged()` in place of those it changed, config changes included.

    Collective where weights are sharded; only the main process writes.
    """
    from luthier.models.loading import save_model

    changed = attached.merged()
    with torch.no_grad(), attached.disabled():
        state = {k: gathered(v).detach().clone() for k, v in model.state_dict().items() if ".luthier" not in k}
    if not main:
        return
    unknown_names = [k for k in changed if k not in state]
    config = type(model.config).from_dict({**model.config.to_dict(), **attached.config_changes()})
    with torch.device("meta"):
        shell = type(model)(config)
    known = set(shell.state_dict())
    if foreign := [k for k in unknown_names if k not in known]:
        raise Refused(sentence("the merged model", "an architecture that has a place for every changed weight",
                               f"no place for {foreign[0]!r}", "Save the adapter instead"))  # fmt: skip
    merged = {k: v for k, v in {**state, **changed}.items() if k in known}
    for name, tensor in shell.state_dict().items():
        merged.setdefault(name, torch.zeros(tensor.shape, dtype=model.dtype))
    shell = shell.to_empty(device="cpu").to(model.dtype)
    shell.load_state_dict(merged, strict=True)
    shell.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        shell.generation_config = model.generation_config
    with whole_folder(folder) as aside:
        try:
            save_model(shell, tokenizer, aside)
        except Exception as fault:  # safetensors and tokenizers each have their own kind for a disk that is full
            if "No space left" in str(fault):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from fault
            raise


class LoadedRun:
    """A finished run read back: the model with its adaptation attached."""

    def __init__(self, folder: Path) -> None:
        """Raises OutputError or ModelError when the folder holds no finished run."""
        from luthier.models.language import LanguageModule
        from luthier.models.loading import load_causal_lm, load_tokenizer

        manifest = folder / "manifest.json"
        if not (folder / "adapter" / "adaptation.safetensors").is_file():
            raise ModelError(
                sentence(f"folder {folder}", "a finished run (adapter/)", "none", "Run `luthier run` first")
            )
        self.folder = folder
        self.recipe: Recipe = parse({k: v for k, v in read_json(manifest)["recipe"].items() if v is not None})
        source = model_source(self.recipe)
        self.model = load_causal_lm(source, self.recipe.dtype)
        self.tokenizer = load_tokenizer(self.recipe.tokenizer or source)
        self.attached = attach_all(self.model, build_adapt(self.recipe.adapt), self.recipe.seed)
        self.attached.load(read_tensors(folder / "adapter" / "adaptation.safetensors"))
        self.module = LanguageModule(self.model)

    def subject(self, seed: int = 0) -> Any:
        """The run as measures and generation see it."""
        from luthier.models.changes import changes_of
        from luthier.models.subject import LanguageSubject
        from luthier.recipes.helpers import load_helpers
        from luthier.recipes.text import renderer

        adaptations = [a for a, _ in build_adapt(self.recipe.adapt)]
        text = renderer(self.tokenizer, self.recipe.data, self.model.config)
        return LanguageSubject(self.module, self.tokenizer, text.renders, text.pairs, text.stop, seed,
                               off=self.attached.disabled, decode=build_decode(self.recipe.decode),
                               helpers=load_helpers(self.recipe, self.model, self.tokenizer, self.attached.disabled),
                               changed=changes_of(self.model, self.attached, adaptations))  # fmt: skip


def free_folder(out: Path) -> None:
    """Raise OutputError unless `out` is a new or empty folder."""
    came = "a file" if out.is_file() else "one with files in it" if out.is_dir() and any(out.iterdir()) else None
    if came:
        raise OutputError(sentence(f"output folder {out}", "an empty or new folder", came, "Choose another"))


def export(folder: Path, to: str, out: Path) -> None:
    """Write a run as "merged" or "peft". Raises Refused where the adaptation has no such form."""
    if to not in ("merged", "peft"):
        raise Refused(sentence("export --to", "'merged' or 'peft'", repr(to), "Choose one of them"))
    free_folder(out)
    run = LoadedRun(folder)
    if to == "merged":
        write_folded(run.model, run.attached, run.tokenizer, out)
    else:
        from luthier.adapt.export import export_lora

        if not hasattr(run.attached, "modules"):
            names = " + ".join(a.id for a, _ in build_adapt(run.recipe.adapt))
            raise Refused(
                sentence("export --to peft", "one low-rank adaptation, as lora", names, "Export with --to merged")
            )
        export_lora(run.attached, out, model_source(run.recipe))


def plain_subject(source: str, seed: int = 0) -> Any:
    """A model folder, hub name or lab:language as a subject, with its own chat template."""
    from luthier.models.language import LanguageModule
    from luthier.models.loading import load_causal_lm, load_tokenizer
    from luthier.models.subject import LanguageSubject
    from luthier.recipes.recipe import Data
    from luthier.recipes.text import renderer

    where = model_source(Recipe(model=source, data=Data(train="none")))
    model, tokenizer = load_causal_lm(where), load_tokenizer(where)
    text = renderer(tokenizer, Data(train="none"), model.config)
    return LanguageSubject(LanguageModule(model), tokenizer, text.renders, text.pairs, text.stop, seed)
