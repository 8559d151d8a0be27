"""Recipes of image models: rows to images and conditions, the model as a denoiser, samples as measures and reports see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core import Guidance, Sampler
from luthier.core.config import build_component
from luthier.core.errors import Refused, counted, sentence
from luthier.core.protocols import Row
from luthier.models.denoiser import DenoiserView, LoadedDenoiser
from luthier.models.pipelines import pixel_shape
from luthier.recipes.image_check import IMAGE_WORLD as WORLD
from luthier.recipes.image_check import PROMPT_FILES
from luthier.recipes.recipe import Recipe
from luthier.train.images import ImageFeed, Prior


@dataclass
class Pictures:
    """Images of one source in the model's own range, with their rows and raw conditions.

    images: per part (N, C, H, W), empty where only conditions are known. read: a world's exact reader of images, if any.
    """

    images: tuple[Tensor, ...]
    parts: tuple[str, ...]
    rows: list[dict[str, Any]]
    conditions: dict[str, Tensor]
    kind: str
    statement: str
    fingerprint: str
    path: str
    notes: list[str] = field(default_factory=list)

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The rows, one for each image."""
        return self.rows

    def keep(self, index: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        at = torch.tensor(list(index), dtype=torch.long)
        self.images = tuple(part[at] for part in self.images)
        self.conditions = {k: v[at] for k, v in self.conditions.items()}
        self.rows = [self.rows[i] for i in index]


@dataclass
class ImageSubject:
    """An image model as measures see it.

    draw: samples latents or pixels from (runner, conditions, rows' numbers, seed). decode: to images in [-1, 1]. around, off:
    as for language models: the context of every pass, and the one that switches the adaptation off.
    """

    view: DenoiserView
    draw: Callable[[Any, Mapping[str, Tensor], Tensor, str], Tensor]
    tokens: Callable[[Sequence[Row]], dict[str, Tensor]]
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Any] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    off: Callable[[], AbstractContextManager[Any]] | None = None
    batch: int = 64
    _told: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    _base: ImageSubject | None = field(default=None, repr=False)

    def base(self) -> ImageSubject:
        """The model before training; a model that was never trained is its own base."""
        if self.off is None:
            return self
        if self._base is None:
            self._base = ImageSubject(
                self.view, self.draw, self.tokens, self.decode, self.encode, self.read, self.off, None, self.batch
            )
        return self._base

    def runner(self) -> Any:
        """The denoiser itself, in evaluation, without gradient."""
        return self.view.runner(self._still)

    def _still(self) -> AbstractContextManager[Any]:
        from contextlib import ExitStack

        stack, module = ExitStack(), self.view.wrapped
        if module.training:
            stack.callback(module.train)
        module.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(self.around())
        return stack

    def generate(self, rows: Sequence[Row], *, samples: int = 1, role: str = "measure") -> Tensor:
        """`samples` images for each row's condition, (n, samples, C, H, W) in [-1, 1]; the same noise for every model."""
        key = (repr([sorted((k, str(v)) for k, v in r.items() if k != "image") for r in rows]), samples, role)
        if key not in self._told:
            raw = self.tokens(rows)
            device = next(self.view.module.parameters()).device
            number = torch.arange(len(rows) * samples)
            made = []
            for at in number.split(self.batch):
                condition = {k: v[at // samples].to(device) for k, v in raw.items()}
                made.append(self.decode(self.draw(self.runner(), condition, at, role)).clamp(-1, 1).cpu())
            self._told[key] = torch.cat(made).unflatten(0, (len(rows), samples))
        return self._told[key]


def drawer(recipe: Recipe, path: Any, loaded: LoadedDenoiser, handles: Mapping[str, Any]) -> Any:
    """The recipe's `sampling` section as a function of (runner, condition, numbers of the samples, role)."""
    from luthier.diffusion.samplers._driver import Noise, sample
    from luthier.diffusion.schedules._grid import make_grid, shifted

    asked = recipe.sampling
    sampler: Sampler = build_component(asked.sampler, "diffusion", "sampling.sampler")
    scale = [] if asked.guidance == 1.0 else [{"cfg": {"scale": asked.guidance}}]
    guides: list[Guidance] = [
        build_component(g, "diffusion", f"sampling.guides[{i}]") for i, g in enumerate([*scale, *asked.guides])
    ]
    if chooses := [g.name for g in guides if type(g).choose is not Guidance.choose]:
        raise Refused(sentence("sampling.guides", "guidance that keeps every sample", chooses[0],
                               "Use it from Python (luthier.diffusion.guidance)"))  # fmt: skip
    grid = make_grid(path, asked.steps, asked.spacing)
    if asked.spacing == "uniform":
        grid = shifted(grid, shift_of(loaded.scheduler, loaded.tokens))

    def draw(runner: Any, condition: Mapping[str, Tensor], numbers: Tensor, role: str) -> Tensor:
        noise = Noise(recipe.seed, tuple(numbers.tolist()), role)
        held = runner.encode(condition) if condition else None
        x = noise.start(path, (len(numbers), *loaded.shape)).to(runner.device)
        return sample(runner, sampler, x, grid, held, noise, guidance=guides, handles=handles)

    return draw


def shift_of(scheduler: Mapping[str, Any], tokens: int) -> float:
    """How much longer a flow pipeline samples at high noise (arXiv 2403.03206, eq. 23); 1 for other schedulers.

    tokens: of the network for one image, by which pipelines of several sizes choose it.
    """
    if "FlowMatch" not in str(scheduler.get("_class_name", "")):
        return 1.0
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift") or 1.0)
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def view_of(loaded: LoadedDenoiser) -> DenoiserView:
    """The engine's view of a pipeline, with the path and the prediction kind that its scheduler says."""
    from luthier.diffusion.schedules._scheduler import kind_said, path_of

    return DenoiserView(loaded.module, path_of(loaded.scheduler), kind_said(loaded.scheduler))


def pictures(recipe: Recipe, source: str, split: str, n: int, loaded: LoadedDenoiser, kind: str, seed: int) -> Pictures:
    """Images of one source for this model. Raises DataError with every image that cannot be used."""
    conditioner, pixels = loaded.module.conditioner, pixel_shape(loaded.folder)
    if source.startswith(WORLD):
        from luthier.recipes.image_world import world_pictures

        made = world_pictures(source, split, n, seed, kind)
    else:
        made = _files(recipe, source, pixels, n, kind)
    made.conditions = conditioner.tokens(made.rows) if conditioner.raw else {}
    if loaded.codec is not None:
        made.images = tuple(
            torch.cat([loaded.codec.encode(as_floats(b)) for b in part.split(16)]) for part in made.images
        )
    return made


def as_floats(stored: Tensor) -> Tensor:
    """Bytes to the range [-1, 1]; floats as they are."""
    return stored.float() / 127.5 - 1.0 if stored.dtype == torch.uint8 else stored.float()


def _files(recipe: Recipe, source: str, shape: tuple[int, int, int], n: int, kind: str) -> Pictures:
    """Images of files; of pairs, the columns `chosen` and `rejected` name them; of prompts, rows with captions alone will do."""
    from luthier.data.formats._images import load_images, load_prompts

    data = recipe.data
    if kind == "image_prompts" and Path(source).suffix in PROMPT_FILES:
        rows, told, mark = load_prompts(source, data.fields)
        made = Pictures((), ("image",), rows, {}, kind, told, mark, source)
    elif kind == "image_preference":
        parts = ("chosen", "rejected")
        sides = [load_images(source, shape, data.resize, "error", {**(data.fields or {}), "image": p}) for p in parts]
        told = f"{counted(len(sides[0].rows), 'pair')} of images from {source}"
        mark = "".join(s.fingerprint for s in sides)
        made = Pictures(
            tuple(torch.from_numpy(s.pixels) for s in sides), parts, sides[0].rows, {}, kind, told, mark, source
        )
    else:
        found = load_images(source, shape, data.resize, data.on_bad, data.fields)
        images = () if kind == "image_prompts" else (torch.from_numpy(found.pixels),)
        made = Pictures(images, ("image",), found.rows, {}, kind, found.statement, found.fingerprint, source,
                        [f"left out: {f}" for f in found.faults[:5]])  # fmt: skip
    if n and len(made.rows) > n:
        made.notes.append(f"the first {n} of {len(made.rows)} rows are used")
        made.keep(range(n))
    return made


def brought(recipe: Recipe, objective: Any, loaded: LoadedDenoiser) -> dict[str, torch.nn.Module]:
    """Modules that the objective brings, by handle. Raises Refused where weights are spread over processes."""
    made = dict(objective.brings(loaded.shape, recipe.seed))
    if made and recipe.train.shard:
        raise Refused(
            sentence(objective.name, "train.shard false, as it brings modules of its own", "true", "Leave it out")
        )
    return made


def batch_kind(objective: Any) -> str:
    """The kind of batches that an image objective reads. Raises Refused for objectives of text."""
    members = getattr(objective, "members", (objective,))
    kinds = {k for one in members for k in getattr(one, "inner", one).needs.batch}
    if len(kinds) != 1 or not next(iter(kinds)).startswith("image"):
        raise Refused(sentence(objective.name, "a model and data that it was made for", "an image model",
                               "Use an objective of luthier.diffusion, for example denoise"))  # fmt: skip
    return kinds.pop()


def codec_of(loaded: LoadedDenoiser) -> tuple[Any, Any]:
    """(decode, encode) between the model's range and images in [-1, 1]."""
    if loaded.codec is None:
        return (lambda x: x), (lambda x: x)
    return loaded.codec.decode, loaded.codec.encode


@dataclass(frozen=True)
class ImageReward:
    """A reward component on what the sampler made: latents are decoded first; gradients flow where the reward lets them."""

    reward: Any
    decode: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, rows: Sequence[Row]) -> Tensor:
        """x (B, C, H, W) with the rows of their conditions -> (B,), higher is better."""
        return self.reward(rows, self.decode(x))


def feed_of(recipe: Recipe, train: Pictures, loaded: LoadedDenoiser, objective: Any) -> ImageFeed:
    """Batches of the training images."""
    members = [getattr(one, "inner", one) for one in getattr(objective, "members", (objective,))]
    conditioner = loaded.module.conditioner
    null = {k: v[0] for k, v in conditioner.null(1).items()} if recipe.data.drop_condition and train.conditions else {}
    columns = {
        k: torch.tensor([float(r[k]) for r in train.rows])
        for k in ("weight", "score")
        if train.rows and k in train.rows[0]
    }
    return ImageFeed(train.images, train.kind, train.parts, recipe.train.batch, recipe.seed, train.conditions, null,
                     recipe.data.drop_condition, recipe.train.micro, columns, train.rows, as_floats,
                     rows=len(train.rows), shape=loaded.shape, steps=recipe.train.total_steps(len(train.rows)),
                     references=max((getattr(one, "references", 0) for one in members), default=0),
                     pair=next((one.pair for one in members if hasattr(one, "pair")), None),
                     prior=_prior(members, loaded))  # fmt: skip


def _prior(members: Sequence[Any], loaded: LoadedDenoiser) -> Prior | None:
    """Room for the class images that an objective asks for, zeros as yet. Raises Refused where others would read them too."""
    asked = next((one.class_images for one in members if getattr(one, "class_images", None)), None)
    if asked is None:
        return None
    if len(members) > 1:
        raise Refused(sentence(f"{members[0].name} beside others", "one objective that reads the batch", f"{len(members)}",
                               "Put the other one inside dreambooth (its parameter objective)"))  # fmt: skip
    conditioner, (caption, count) = loaded.module.conditioner, asked
    if conditioner.raw and not caption.strip():
        raise Refused(sentence("dreambooth", "the caption of the subject's class", "none", "Give it as prior"))
    row = {"label": int(caption)} if conditioner.raw == ("label",) and caption.isdigit() else {"caption": caption}
    return Prior(torch.zeros(count, *loaded.shape), conditioner.tokens([row]))


def draw_prior(feed: ImageFeed, subject: ImageSubject, device: Any) -> list[str]:
    """Have the untrained model draw the class images, by the recipe's own sampling; a note of it, or none."""
    if feed.prior is None:
        return []
    base, numbers, made = subject.base(), torch.arange(len(feed.prior.images)), []
    for at in numbers.split(subject.batch):
        held = {k: v.expand(len(at), *v.shape[1:]).to(device) for k, v in feed.prior.conditions.items()}
        made.append(base.draw(base.runner(), held, at, "prior").cpu())
    feed.prior.images = torch.cat(made)
    drawn = counted(len(numbers), "image of the class was", "images of the class were")
    return [f"{drawn} drawn by the untrained model"]
