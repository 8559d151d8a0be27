"""Runs as files other tools read: merged models, PEFT checkpoints, LoRA files of pipelines; and runs read back."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.device import fastest
from luthier.core.errors import ModelError, OutputError, Refused, sentence
from luthier.core.files import read_json, read_tensors, whole_folder, write_tensors
from luthier.recipes.build import attach_all, build_adapt, build_decode
from luthier.recipes.places import model_source
from luthier.recipes.recipe import Recipe, parse
from luthier.train.sharding import gathered


def write_folded(model: Any, attached: Any, tokenizer: Any, folder: Path, main: bool = True) -> None:
    """Write the merged model, config changes included.

    Collective where weights are sharded; only the main process writes. Memory: one copy of the weights that an adaptation
    changes, none of those that trained in place.
    """
    from luthier.models.loading import save_model

    with torch.no_grad(), attached.folding() as changed:
        state = {k: gathered(v).detach() for k, v in model.state_dict().items()}
        if not main:
            return
        shell = _folded(model, attached, state, changed)
        with whole_folder(folder) as aside:
            try:
                save_model(shell, tokenizer, aside)
            except Exception as fault:  # safetensors and tokenizers each have their own kind for a disk that is full
                if "No space left" in str(fault):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from fault
                raise


def _folded(model: Any, attached: Any, state: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Any:
    """A model of the changed configuration around these very tensors, changed ones in place of the base's; none is copied."""
    config = type(model.config).from_dict({**model.config.to_dict(), **attached.config_changes()})
    with torch.device("meta"):
        shell = type(model)(config)
    known = shell.state_dict()
    if foreign := [k for k in changed if k not in state and k not in known]:
        raise Refused(sentence("the merged model", "an architecture that has a place for every changed weight",
                               f"no place for {foreign[0]!r}", "Save the adapter instead"))  # fmt: skip
    merged = {k: v if not v.is_floating_point() else v.to(model.dtype) for k, v in {**state, **changed}.items() if k in known}
    for name, tensor in known.items():
        if name not in merged:
            merged[name] = torch.zeros(tensor.shape, dtype=model.dtype)
    shell.load_state_dict(merged, strict=True, assign=True)
    shell.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        shell.generation_config = model.generation_config
    return shell


def recipe_of(run: Path) -> Recipe:
    """The recipe of a finished run. Raises ModelError when the folder holds none."""
    if not (run / "adapter" / "adaptation.safetensors").is_file():
        raise ModelError(sentence(f"folder {run}", "a finished run (adapter/)", "none", "Run `luthier run` first"))
    return parse({k: v for k, v in read_json(run / "manifest.json")["recipe"].items() if v is not None})


def attached_of(
    run: Path, recipe: Recipe, model: torch.nn.Module, beside: Mapping[str, torch.nn.Module] | None = None
) -> Any:
    """The run's adaptation on its model. beside: modules that its objective brings."""
    attached = attach_all(model, build_adapt(recipe.adapt), recipe.seed, beside)
    attached.load(read_tensors(run / "adapter" / "adaptation.safetensors"))
    return attached


class LoadedRun:
    """A finished run read back: the model with its adaptation attached."""

    def __init__(self, folder: Path) -> None:
        """Raises OutputError or ModelError when the folder holds no finished run."""
        from luthier.models.language import LanguageModule
        from luthier.models.loading import load_causal_lm, load_tokenizer

        self.folder = folder
        self.recipe: Recipe = recipe_of(folder)
        source = model_source(self.recipe.model)
        self.model = load_causal_lm(source, self.recipe.dtype)
        self.tokenizer = load_tokenizer(self.recipe.tokenizer or source)
        self.attached = attached_of(folder, self.recipe, self.model)
        self.module = LanguageModule(self.model)

    def subject(self, seed: int = 0) -> Any:
        """The run as measures and generation see it, on the machine's accelerator if it has one."""
        from luthier.models.changes import changes_of
        from luthier.models.subject import LanguageSubject
        from luthier.recipes.helpers import load_helpers
        from luthier.recipes.text import renderer

        self.model.to(fastest())  # type: ignore[arg-type]
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
    from luthier.recipes.kits import kind_of

    recipe = recipe_of(folder)
    kind = kind_of(recipe)
    if to not in kind.exports:
        raise Refused(sentence("export --to", " or ".join(map(repr, kind.exports)), repr(to), "Choose one of them"))
    free_folder(out)
    kind.export(recipe, folder, to, out)


def one_adaptation(recipe: Recipe) -> None:
    """Raise Refused where the recipe has several adaptations, which no adapter file of other tools can hold."""
    if len(parts := build_adapt(recipe.adapt)) > 1:
        names = " + ".join(a.id for a, _ in parts)
        raise Refused(
            sentence("export --to peft", "one adaptation, low-rank or of peft", names, "Export with --to merged")
        )


def export_text(run: Path, to: str, out: Path) -> None:
    """A language model as a transformers folder, or its adaptation as a PEFT checkpoint."""
    from luthier.adapt.export import export_lora

    held = LoadedRun(run)
    if to == "merged":
        write_folded(held.model, held.attached, held.tokenizer, out)
        return
    one_adaptation(held.recipe)
    export_lora(held.attached, out, model_source(held.recipe.model))


def export_pairs(recipe: Recipe, run: Path, to: str, out: Path) -> None:
    """A text encoder as a sentence-transformers folder, or its adaptation as a PEFT checkpoint of its transformer."""
    from luthier.adapt.export import export_lora
    from luthier.models.encoder import load_encoder
    from luthier.recipes.pair_kit import write_merged_encoder

    loaded = load_encoder(recipe.model, recipe.dtype)
    attached = attached_of(run, recipe, loaded.module.model)
    if to == "merged":
        write_merged_encoder(loaded, attached, out)
        return
    one_adaptation(recipe)
    export_lora(attached, out, recipe.model)


def export_images(recipe: Recipe, run: Path, to: str, out: Path) -> None:
    """An image model as a pipeline folder, or its adaptation as the LoRA file that pipelines of diffusers load."""
    from luthier.adapt.export import lora_tensors
    from luthier.models.denoiser import pipeline_name
    from luthier.recipes.image_kit import write_merged_images
    from luthier.recipes.image_runs import reread

    loaded, attached, beside = reread(run, recipe)
    if to == "merged":
        write_merged_images(loaded, attached, out)
        return
    one_adaptation(recipe)
    if beside:
        attached = attached.handles[0]
    named = {pipeline_name(loaded, k.removeprefix("base_model.model.")): v for k, v in lora_tensors(attached).items()}
    if odd := [k for k in named if not k.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise Refused(sentence("export --to peft", "linear layers and convolutions", odd[0], "Export with --to merged"))
    with whole_folder(out) as aside:
        write_tensors(aside / "pytorch_lora_weights.safetensors", named, {"format": "pt"})


def plain_subject(source: str, seed: int = 0, device: torch.device | None = None) -> Any:
    """A model folder, hub name or lab:language as a subject, with its own chat template. device: None leaves it on the CPU."""
    from luthier.models.language import LanguageModule
    from luthier.models.loading import load_causal_lm, load_tokenizer
    from luthier.models.subject import LanguageSubject
    from luthier.recipes.recipe import Data
    from luthier.recipes.text import renderer

    where = model_source(source)
    model, tokenizer = load_causal_lm(where), load_tokenizer(where)
    model.to(device)  # type: ignore[arg-type]
    text = renderer(tokenizer, Data(train="none"), model.config)
    return LanguageSubject(LanguageModule(model), tokenizer, text.renders, text.pairs, text.stop, seed)
