"""Denoising networks of diffusers seen as the engine sees them: callables of (x, t, condition), with loading and saving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import ModelError, sentence
from luthier.core.moment import at_moment
from luthier.models.conditioning import ClassLabels, ClipText, Conditioner, load_conditioner
from luthier.models.loading import DTYPES, snapshot
from luthier.models.pipelines import read_index

CONSTANT: Mapping[str, dict[str, Any]] = {
    "PixArtTransformer2DModel": {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
}
"""Keyword arguments that an architecture requires and that say nothing."""

Time = Callable[[Tensor], Tensor]


class DenoiserModule(nn.Module):
    """A network and what encodes its conditions, as one module: this is what trains and what data-parallel wrappers wrap."""

    def __init__(self, network: nn.Module, conditioner: Conditioner | None = None) -> None:
        """network: a diffusers model (x, timestep, ...) -> prediction."""
        super().__init__()
        self.network, self.conditioner = network, conditioner or Conditioner()
        self.constant = CONSTANT.get(type(network).__name__, {})
        for module in network.modules():
            inner: Any = module
            if type(module).__name__ == "LabelEmbedding":
                inner.dropout_prob = 0.0  # conditions are dropped by the recipe, from its own random stream

    def encode(self, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw inputs as the network takes them; inputs that are encoded already stay as they are."""
        if set(condition) <= set(self.conditioner.encoded):
            return dict(condition)
        return self.conditioner(**condition)

    def forward(self, x: Tensor, time: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """x (B, C, H, W), time (B,) in the network's own units -> prediction (B, C, H, W)."""
        out = self.network(x, timestep=time, **self.encode(condition), **self.constant, return_dict=False)[0]
        return out[:, : x.shape[1]]


class Runner:
    """A denoiser at hand: the policy, its reference, a teacher or an average, with the same call for all."""

    def __init__(self, view: DenoiserView, around: Callable[[], AbstractContextManager[Any]] = nullcontext,
                 count: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """around: the context of every pass (adapter off, no gradient); count: told of every pass."""
        self.view, self.around, self.count = view, around, count
        self.path, self.kind = view.path, view.kind

    def __call__(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, C, H, W) at times t (B,) of the path -> prediction (B, C, H, W). No condition: the unconditional one."""
        self.count()
        with self.around():
            return self.view.run(x, t, condition)

    def vjp(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None, v: Tensor) -> tuple[Tensor, Tensor]:
        """(prediction, gradient of sum(prediction * v) with respect to x), both without graph."""
        self.count()
        with self.around(), torch.enable_grad():
            at = x.detach().requires_grad_(True)
            out = self.view.run(at, t, condition)
            (gradient,) = torch.autograd.grad(out, at, v)
        return out.detach(), gradient

    def encode(self, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition as the network takes it, to be computed once for many passes."""
        with self.around():
            return self.view.module.encode(condition)

    def null(self, n: int, device: Any = None) -> dict[str, Tensor]:
        """ "No condition" for n rows. Raises ModelError where the model has none."""
        return {k: v.to(device) for k, v in self.view.module.conditioner.null(n).items()}


class DenoiserView:
    """The engine's view of an image model.

    path, kind: how images and noise mix, and what the network predicts. time: from the path's t to the network's units (the path's own).
    """

    def __init__(
        self, module: DenoiserModule, path: Any, kind: str, time: Time | None = None, wrapped: nn.Module | None = None
    ) -> None:
        """wrapped: the module as a data-parallel wrapper presents it (the same by default)."""
        self.module, self.path, self.kind = module, path, kind
        self.time: Time = time or path.network_time
        self.wrapped = wrapped if wrapped is not None else module

    def signals(self, batch: Batch, wants: Iterable[str]) -> dict[str, tuple[Tensor, ...]]:
        """The clean images of each part; all else is a matter of handles."""
        size = len(batch)
        return {"image": tuple(batch.inputs["image"].split(size))} if "image" in batch.inputs else {}

    def run(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None) -> Tensor:
        """One pass through the network."""
        if condition is None:
            condition = {k: v.to(x.device) for k, v in self.module.conditioner.null(len(x)).items()}
        with at_moment(t / self.path.t_max):
            return self.wrapped(x, self.time(t).to(x.dtype), condition)

    def runner(
        self, around: Callable[[], AbstractContextManager[Any]] = nullcontext, count: Callable[[], None] = lambda: None
    ) -> Runner:
        """This model as a handle."""
        return Runner(self, around, count)


@dataclass
class LoadedDenoiser:
    """A pipeline folder taken apart: the trainable module, its scheduler's facts, the latent codec if it has one."""

    module: DenoiserModule
    scheduler: Mapping[str, Any]
    codec: LatentCodec | None
    shape: tuple[int, int, int]
    folder: Path
    part: str


class LatentCodec:
    """Images in [-1, 1] to a VAE's latents and back."""

    def __init__(self, vae: nn.Module) -> None:
        """vae: an AutoencoderKL; it never trains."""
        self.vae = vae.eval().requires_grad_(False)
        config: Any = vae.config
        self.scale = float(getattr(config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Means of the latents, (B, C, H', W')."""
        vae: Any = self.vae
        return (vae.encode(images).latent_dist.mode() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W); gradients flow to the latents."""
        vae: Any = self.vae
        return vae.decode(latents / self.scale + self.shift, return_dict=False)[0]


def load_denoiser(source: str, dtype: str = "fp32") -> LoadedDenoiser:
    """A pipeline folder of diffusers, or a lab world's. Raises ModelError naming the part that is missing or unfit."""
    folder = snapshot(source)
    index, part = read_index(folder)
    scheduler = {}
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    network = _part(folder, part, index, dtype)
    vae = _part(folder, "vae", index, dtype) if index.get("vae", [None])[0] else None
    module = DenoiserModule(network, _conditioner(folder, network, index, dtype))
    config: Any = network.config
    size = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
    return LoadedDenoiser(
        module.eval(),
        scheduler,
        None if vae is None else LatentCodec(vae),
        (config.in_channels, size, size),
        folder,
        part,
    )


def _part(folder: Path, part: str, index: Mapping[str, Any], dtype: str) -> nn.Module:
    """One component of a pipeline by the class that its index names, safetensors only."""
    import diffusers
    import transformers

    library, name = index[part]
    kind = getattr(diffusers if library == "diffusers" else transformers, name, None)
    if library not in ("diffusers", "transformers") or kind is None:
        raise ModelError(sentence(f"model {folder}, {part}", "a class of diffusers or transformers", f"{library}.{name}",
                                  "Luthier runs no remote code; use a converted model"))  # fmt: skip
    extra = {"use_safetensors": True, ("torch_dtype" if library == "diffusers" else "dtype"): DTYPES[dtype]}
    try:
        return kind.from_pretrained(str(folder / part), **extra).eval()
    except (OSError, ValueError, RuntimeError) as fault:
        first = str(fault).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            sentence(f"model {folder}, {part}", "a config and safetensors weights", first, "Download it again")
        ) from fault


def _conditioner(folder: Path, network: nn.Module, index: Mapping[str, Any], dtype: str) -> Conditioner:
    config: Any = network.config
    if (folder / "conditioner" / "conditioner.json").is_file():
        return load_conditioner(folder / "conditioner").to(DTYPES[dtype])
    if index.get("text_encoder", [None])[0]:
        from transformers import AutoTokenizer

        if type(network).__name__ != "UNet2DConditionModel" or index.get("text_encoder_2", [None])[0]:
            raise ModelError(sentence(f"model {folder}", "one text encoder and a UNet2DConditionModel, class labels, or no condition",
                                      f"{type(network).__name__} with other text encoders", "This kind is not supported yet"))  # fmt: skip
        return ClipText(
            _part(folder, "text_encoder", index, dtype), AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
        )
    if type(network).__name__ == "DiTTransformer2DModel":
        return ClassLabels(int(config.num_embeds_ada_norm), unconditional=True)
    if getattr(config, "num_class_embeds", None):
        return ClassLabels(int(config.num_class_embeds), unconditional=False)
    return Conditioner()


def save_denoiser(loaded: LoadedDenoiser, changed: Mapping[str, Tensor], conditioner: Conditioner, out: Path) -> None:
    """Write the pipeline again with `changed` weights (names of the module) in place of its own."""
    for item in sorted(loaded.folder.iterdir()):
        if item.name not in (loaded.part, "conditioner"):
            shutil.copytree(item, out / item.name) if item.is_dir() else shutil.copy2(item, out / item.name)
    network: Any = loaded.module.network
    with torch.device("meta"):
        shell = type(network).from_config(network.config)
    known = set(shell.state_dict())
    state = {k: v.detach() for k, v in network.state_dict().items() if k in known}
    state |= {k.removeprefix("network."): v for k, v in changed.items() if k.startswith("network.")}
    shell.to_empty(device="cpu").load_state_dict(state)
    shell.save_pretrained(out / loaded.part)
    own = {k.removeprefix("conditioner."): v for k, v in changed.items() if k.startswith("conditioner.")}
    if isinstance(conditioner, ClipText):
        encoder: Any = conditioner.encoder
        whole = {k: own.get(f"encoder.{k}", v) for k, v in encoder.state_dict().items() if ".adapted." not in k}
        shutil.rmtree(out / "text_encoder", ignore_errors=True)
        encoder.save_pretrained(out / "text_encoder", state_dict=whole)
    elif (loaded.folder / "conditioner").is_dir():
        (out / "conditioner").mkdir(parents=True)
        with torch.no_grad():
            for name, value in own.items():
                conditioner.get_parameter(name).copy_(value)
        conditioner.save(out / "conditioner")
