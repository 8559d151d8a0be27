"""Text encoders seen as the engine sees them: one vector per text, and one per layer when asked, with loading and saving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import ModelError, sentence
from luthier.models.folders import check_folder
from luthier.models.loading import DTYPES, load_tokenizer, snapshot

Pooling = Literal["mean", "cls"]
SMALL = (".json", ".txt", ".model", ".md")
"""Endings of files that are copied beside the weights: configuration of the modules, tokenizer, text."""


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Token vectors (n, T, d) under a mask (n, T) -> (n, d): their mean over the mask, or the first one."""
    if how == "cls":
        return hidden[:, 0]
    weight = mask.to(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


class EncoderModule(nn.Module):
    """A transformers encoder with its pooling: texts as tokens in, vectors out."""

    def __init__(self, model: nn.Module, pooling: Pooling = "mean", normalise: bool = False) -> None:
        """model: any model whose output has last_hidden_state (n, T, d) and, when asked, hidden_states."""
        super().__init__()
        self.model, self.normalise = model, normalise
        self.pooling: Pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: bool = False) -> Tensor:
        """input_ids, attention_mask (n, T) -> (n, d); with `layers` (n, L + 1, d), the input embeddings first, the output last."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=layers)
        states = (*out.hidden_states[:-1], out.last_hidden_state) if layers else (out.last_hidden_state,)
        made = torch.stack([pool(h, attention_mask, self.pooling) for h in states], 1)
        made = nn.functional.normalize(made, dim=-1) if self.normalise else made
        return made if layers else made[:, 0]


class EncoderView:
    """The engine's view of a text encoder: signals `embedding` (B, d) and `layer_embedding` (B, L + 1, d) per part."""

    extra_signals = ("layer_embedding",)
    spreads: ClassVar[bool] = True

    def __init__(self, module: EncoderModule, wrapped: nn.Module | None = None) -> None:
        """wrapped: the module as a data-parallel wrapper presents it (the same by default)."""
        self.module = module
        self.wrapped = wrapped if wrapped is not None else module

    def signals(self, batch: Batch, wants: Iterable[str]) -> dict[str, tuple[Tensor, ...]]:
        """One forward pass over all parts of the batch."""
        asked = set(wants)
        deep = "layer_embedding" in asked
        if not asked & {"embedding", "layer_embedding"}:
            return {}
        made = self.wrapped(batch.inputs["input_ids"], batch.inputs["attention_mask"], layers=deep)
        last = made[:, -1] if deep else made
        out = {"embedding": tuple(last.split(len(batch)))}
        return {**out, "layer_embedding": tuple(made.split(len(batch)))} if deep else out


@dataclass
class LoadedEncoder:
    """An encoder taken from its folder. part: where in it the transformer lies ("" is the folder itself).

    limit: tokens that it reads of a text. layers: number of its layers.
    """

    module: EncoderModule
    tokenizer: Any
    folder: Path
    part: str
    limit: int
    layers: int


def load_encoder(source: str, dtype: str = "fp32", weights: bool = True) -> LoadedEncoder:
    """A sentence-transformers folder, a plain folder of transformers (mean pooling), a hub name of either, or "minilm".

    weights: False builds the network from its configuration alone. Raises ModelError naming the file or the module that is
    missing or unfit.
    """
    import transformers
    from transformers import AutoConfig, AutoModel

    folder = _folder(source)
    part, pooling, normalise, own = _modules(folder)
    check_folder(folder / part)
    transformers.utils.logging.disable_progress_bar()
    try:
        if weights:
            model = AutoModel.from_pretrained(str(folder / part), dtype=DTYPES[dtype], use_safetensors=True)
        else:
            model = AutoModel.from_config(AutoConfig.from_pretrained(str(folder / part)), dtype=DTYPES[dtype])
    except (OSError, ValueError, RuntimeError) as fault:
        first = str(fault).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            sentence(f"model {source!r}", "an encoder that transformers knows", first, "Check the folder")
        ) from fault
    tokenizer = load_tokenizer(str(folder / part))
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or 512
    limit = int(own or min(context, tokenizer.model_max_length))
    return LoadedEncoder(
        EncoderModule(model.eval(), pooling, normalise), tokenizer, folder, part, limit, int(config.num_hidden_layers)
    )


def _folder(source: str) -> Path:
    if source == "minilm":
        from luthier.models.embedder import minilm_folder

        return minilm_folder()
    return snapshot(source)


def _modules(folder: Path) -> tuple[str, Pooling, bool, int | None]:
    """(part, pooling, whether vectors are normalised, its own token limit) as modules.json says; mean pooling without one."""
    if not (folder / "modules.json").is_file():
        return "", "mean", False, None
    part, pooling, normalise = "", "mean", False
    for one in _json(folder / "modules.json"):
        kind, path = str(one["type"]).rsplit(".", 1)[-1], str(one["path"])
        if kind == "Transformer":
            part = path
        elif kind == "Pooling":
            pooling = _pooling(_json(folder / path / "config.json"), folder)
        elif kind == "Normalize":
            normalise = True
        else:
            raise ModelError(
                sentence(f"model {folder}", "modules Transformer, Pooling and Normalize", kind, "Use another encoder")
            )
    own = folder / part / "sentence_bert_config.json"
    limit = _json(own).get("max_seq_length") if own.is_file() else None
    return part, "cls" if pooling == "cls" else "mean", normalise, limit


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ModelError(
            sentence(f"model file {path}", "readable JSON", str(fault).rstrip("."), "Download it again")
        ) from fault


def _pooling(config: Mapping[str, Any], folder: Path) -> Pooling:
    """The pooling of a module's config, in its older form (one flag for each kind) or its newer one (a name)."""
    flags = {k.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for k, v in config.items()
             if k.startswith("pooling_mode_") and v is True}  # fmt: skip
    said = config.get("pooling_mode", flags)
    names = {said} if isinstance(said, str) else set(said)
    if names == {"mean"}:
        return "mean"
    if names == {"cls"}:
        return "cls"
    raise ModelError(
        sentence(f"model {folder}", "mean or cls pooling", ", ".join(sorted(names)) or "none", "Use another encoder")
    )


def copy_beside(loaded: LoadedEncoder, out: Path) -> None:
    """Copy what a written transformer lacks of its source folder: module configurations and small text files."""
    for path in sorted(loaded.folder.rglob("*")):
        place = out / path.relative_to(loaded.folder)
        if path.is_file() and path.suffix in SMALL and not place.exists():
            if path.parent == loaded.folder / loaded.part and path.name.startswith(
                ("tokenizer", "README", "model.safetensors.index")
            ):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
