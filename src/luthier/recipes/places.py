"""Where the models that a recipe names lie: a world's shipped base, a folder, or a hub name. Without torch."""

from __future__ import annotations

from luthier.core.errors import ConfigError, sentence
from luthier.recipes.image_check import IMAGE_WORLD
from luthier.recipes.model_check import WORLDS, world_faults


def model_source(model: str) -> str:
    """The folder or hub name of a language model. Raises ConfigError for worlds that have none."""
    if not model.startswith("lab:"):
        return model
    from luthier.lab.language import World

    if faults := world_faults(model):
        raise ConfigError(faults)
    if model != WORLDS[0]:
        raise ConfigError(sentence("model", "a language model here", f"{model}, a world of images", f"Use {WORLDS[0]}"))
    return str(World().model_folder())


def denoiser_source(model: str) -> str:
    """The folder or hub name of an image model. Raises ConfigError for worlds that do not exist."""
    if not model.startswith(IMAGE_WORLD):
        return model
    from luthier.lab.image import Digits, World

    if faults := world_faults(model):
        raise ConfigError(faults)
    return str((Digits() if model.endswith("/digits") else World()).model_folder())
