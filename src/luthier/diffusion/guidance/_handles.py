"""The other denoisers that a guidance asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core import Denoiser
from luthier.core.errors import Refused, sentence
from luthier.diffusion.schedules._path import same_path


def other(handles: Mapping[str, Any], name: str, denoiser: Denoiser, who: str) -> Denoiser:
    """The denoiser `name` of the handles. Raises Refused where it is missing or of another path or kind."""
    if name not in handles:
        came = ", ".join(handles) or "no handles"
        raise Refused(sentence(who, f"the denoiser {name!r}", came, "Give the model before tuning as a handle"))
    same_path(denoiser, handles[name], who)
    return handles[name]
