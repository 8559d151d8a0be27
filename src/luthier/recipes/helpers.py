"""Helper models of decoding: which ones the components of `decode` ask for, and how they are loaded.

A decoding component whose card needs a handle listens to a model of that name, or of the names that its parameter of the
same name gives. The recipe names these models in `decode_models`; `base` that is not named there is the model before
training, which is the same network with its adaptation switched off.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.config import as_dict, name_and_parameters
from luthier.core.errors import ConfigError, Refused, UnknownComponent, sentence
from luthier.core.registry import find

if TYPE_CHECKING:
    from torch import nn

    from luthier.models.generation import Helper
    from luthier.recipes.recipe import Recipe

BASE = "base"


def asked_models(specs: Sequence[Any]) -> dict[str, str]:
    """Helper models that decoding components ask for: name -> the component's short name. Imports none of them."""
    asked: dict[str, str] = {}
    for i, spec in enumerate(specs):
        try:
            name, given = name_and_parameters(as_dict(spec), f"decode[{i}]")
            entry = find(name, "decode")
        except (ConfigError, UnknownComponent):  # said elsewhere
            continue
        defaults = {p.name: p.default for p in entry.parameters}
        for handle in entry.card.needs.handles:
            default = defaults.get(handle)
            value = given.get(handle, handle if default is None else ast.literal_eval(default))
            for model in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else ():
                asked.setdefault(str(model), entry.short)
    return asked


def decode_model_faults(plain: Mapping[str, Any]) -> list[str]:
    """Models that decoding asks for and the recipe does not name, and models that it names in vain."""
    specs, given = plain.get("decode"), plain.get("decode_models")
    named = given if isinstance(given, Mapping) else {}
    asked = asked_models(specs if isinstance(specs, list | tuple) else [] if specs is None else [specs])
    faults = [f"decode: {who} requires the logits of a model {model!r}; the recipe names none. Add for example "
              f"`decode_models: {{{model}: FOLDER}}`."
              for model, who in asked.items() if model not in named and model != BASE]  # fmt: skip
    return faults + [f"decode_models.{model}: requires a decoding component that listens to it; this recipe has none, so it "
                     "would do nothing. Remove it." for model in named if model not in asked]  # fmt: skip


def load_helpers(recipe: Recipe, model: nn.Module, tokenizer: Any,
                 off: Callable[[], AbstractContextManager[None]]) -> dict[str, Helper]:  # fmt: skip
    """The models that the recipe's decoding listens to, each loaded once, on the device of `model`.

    A helper is a folder of a model, a hub name, a world's base, or the folder of a run. Raises Refused for one with another
    vocabulary than the tokenizer's, ModelError for one that cannot be loaded.
    """
    from luthier.models.generation import Helper

    named, helpers = recipe.decode_models or {}, dict[str, Any]()
    device = next(model.parameters()).device
    loaded: dict[str, Any] = {}
    for name in asked_models(recipe.decode):
        if name not in named:
            helpers[name] = Helper(model, off)
            continue
        source = named[name]
        if source not in loaded:
            loaded[source] = _load(source, recipe.dtype, name, tokenizer.get_vocab()).to(device)
        helpers[name] = Helper(loaded[source])
    return helpers


def _load(source: str, dtype: str, name: str, vocabulary: Mapping[str, int]) -> nn.Module:
    from luthier.models.loading import load_causal_lm, load_tokenizer
    from luthier.recipes.export import LoadedRun
    from luthier.recipes.places import model_source

    folder = Path(source).expanduser()
    if (folder / "adapter").is_dir():
        run = LoadedRun(folder)
        model, own = run.model, run.tokenizer
    else:
        where = model_source(source)
        model, own = load_causal_lm(where, dtype), load_tokenizer(where)
    if (found := own.get_vocab()) != vocabulary:
        other = sum(vocabulary.get(token) != at for token, at in found.items())
        raise Refused(sentence(f"decode_models.{name}", "the vocabulary of the model", f"{len(found)} tokens, {other} of them other "
                               f"ones or in other places, beside {len(vocabulary)}", "Use models of one family"))  # fmt: skip
    return model.eval()
