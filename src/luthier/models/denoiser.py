"""Denoising networks of diffusers seen as the engine sees them: callables of (x, t, condition), with loading and saving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import ModelError, Refused, sentence
from luthier.core.moment import at_moment
from luthier.models._forms import form_of
from luthier.models._text_encoders import ENCODERS, TextEncoders, text_conditioner
from luthier.models.conditioning import ClassLabels, ClipText, Conditioner, load_conditioner
from luthier.models.loading import DTYPES, snapshot
from luthier.models.pipelines import latent_shape, pixel_shape, read_index

Time = Callable[[Tensor], Tensor]


class DenoiserModule(nn.Module):
    """A network and what encodes its conditions, as one module: this is what trains and what data-parallel wrappers wrap."""

    def __init__(self, network: nn.Module, conditioner: Conditioner | None = None) -> None:
        """network: a diffusers model (x, timestep, ...) -> prediction."""
        super().__init__()
        self.network, self.conditioner = network, conditioner or Conditioner()
        self.form = form_of(network)
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
        """x (B, C, H, W), time (B,) in the network's own units -> prediction (B, C, H, W), of x's type."""
        own = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), x.dtype)
        return self.form(self.network, x.to(own), time, self.encode(condition)).to(x.dtype)


class Runner:
    """A denoiser at hand: the policy, its reference, a teacher or an average, with the same call for all."""

    def __init__(self, view: DenoiserView, around: Callable[[], AbstractContextManager[Any]] = nullcontext,
                 count: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """around: the context of every pass (adapter off, no gradient); count: told of every pass."""
        self.view, self.around, self.count = view, around, count
        self.path, self.kind = view.path, view.kind

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return next(self.view.module.parameters()).device

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

    spreads: ClassVar[bool] = False  # conditions are encoded before a pass, and a DiT calls a layer of its first block after the last one

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

    @property
    def tokens(self) -> int:
        """How many patches the network cuts an image into; places of latents where it cuts none."""
        config: Any = self.module.network.config
        side = (
            2
            if type(self.module.network).__name__ == "FluxTransformer2DModel"
            else int(getattr(config, "patch_size", 1))
        )
        return (self.shape[1] // side) * (self.shape[2] // side)


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
        """Means of the latents, (B, C, H', W'), on the images' device, whatever the VAE's is."""
        vae: Any = self.vae
        latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mode()
        return ((latents - self.shift) * self.scale).to(images.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) on the latents' device; gradients flow to the latents."""
        vae: Any = self.vae
        inner = latents.to(vae.device, vae.dtype) / self.scale + self.shift
        return vae.decode(inner, return_dict=False)[0].to(latents.device)


def load_denoiser(source: str, dtype: str = "fp32", weights: bool = True) -> LoadedDenoiser:
    """A pipeline folder of diffusers, or a lab world's. Raises ModelError naming the part that is missing or unfit.

    weights: False builds every network from its configuration alone. The VAE of a model in half precision is kept in fp32.
    """
    folder = snapshot(source)
    index, part = read_index(folder)
    scheduler = {}
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    load = _Parts(folder, index, dtype, weights)
    network = load(part)
    wide = replace(load, dtype="fp64" if dtype == "fp64" else "fp32")
    codec = LatentCodec(wide("vae")) if index.get("vae", [None])[0] else None
    module = DenoiserModule(network, _conditioner(network, load))
    return LoadedDenoiser(module.eval(), scheduler, codec, latent_shape(folder), folder, part)


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors have this type inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class _Parts:
    """Loads components of a pipeline by the class that its index names, safetensors only."""

    folder: Path
    index: Mapping[str, Any]
    dtype: str
    weights: bool

    def __call__(self, part: str) -> nn.Module:
        """One component in evaluation mode."""
        import diffusers
        import transformers

        library, name = self.index[part]
        kind = getattr(diffusers if library == "diffusers" else transformers, name, None)
        if library not in ("diffusers", "transformers") or kind is None:
            raise ModelError(sentence(f"model {self.folder}, {part}", "a class of diffusers or transformers", f"{library}.{name}",
                                      "Luthier runs no remote code; use a converted model"))  # fmt: skip
        at, dtype = str(self.folder / part), DTYPES[self.dtype]
        try:
            if self.weights:
                said = "torch_dtype" if library == "diffusers" else "dtype"
                return kind.from_pretrained(at, use_safetensors=True, **{said: dtype}).eval()
            with made_in(dtype):
                if library == "diffusers":
                    return kind.from_config(kind.load_config(at)).eval()
                return kind(kind.config_class.from_pretrained(at)).eval()
        except (OSError, ValueError, RuntimeError) as fault:
            first = str(fault).strip().splitlines()[0].rstrip(".")
            raise ModelError(
                sentence(f"model {self.folder}, {part}", "a config and safetensors weights", first, "Download it again")
            ) from fault


def _conditioner(network: nn.Module, load: _Parts) -> Conditioner:
    config: Any = network.config
    folder, index = load.folder, load.index
    if (folder / "conditioner" / "conditioner.json").is_file():
        with made_in(DTYPES[load.dtype]):
            return load_conditioner(folder / "conditioner", load.weights)
    if any(index.get(p, [None])[0] for p in ENCODERS):
        return text_conditioner(folder, network, index, pixel_shape(folder)[1:], load)
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
    with torch.device("meta"), made_in(network.dtype):
        shell = type(network).from_config(network.config)
    known = set(shell.state_dict())
    state = {k: v.detach() for k, v in network.state_dict().items() if k in known}
    state |= {k.removeprefix("network."): v for k, v in changed.items() if k.startswith("network.")}
    shell.to_empty(device="cpu").load_state_dict(state)
    shell.save_pretrained(out / loaded.part)
    own = {k.removeprefix("conditioner."): v for k, v in changed.items() if k.startswith("conditioner.")}
    for part, (prefix, encoder) in _encoders(conditioner).items():
        whole = {k: own.get(prefix + k, v) for k, v in encoder.state_dict().items() if ".adapted." not in k}
        shutil.rmtree(out / part, ignore_errors=True)
        encoder.save_pretrained(out / part, state_dict=whole)
    if (loaded.folder / "conditioner").is_dir():
        (out / "conditioner").mkdir(parents=True)
        conditioner.save(out / "conditioner", own)
    if isinstance(conditioner, ClipText) and conditioner.before:
        conditioner.tokenizer.save_pretrained(out / "tokenizer")


def _encoders(conditioner: Conditioner) -> dict[str, tuple[str, Any]]:
    """Text encoders by the pipeline's names, with the prefix of their weights' names in the conditioner."""
    if isinstance(conditioner, TextEncoders):
        return {p: (f"encoders.{p}.", m) for p, m in conditioner.encoders.items()}
    return {"text_encoder": ("encoder.", conditioner.encoder)} if isinstance(conditioner, ClipText) else {}


def pipeline_name(loaded: LoadedDenoiser, name: str) -> str:
    """A name of the module's as the pipeline has it: "unet.mid_block...". Raises Refused for what pipelines have no place for."""
    for part, (prefix, _) in _encoders(loaded.module.conditioner).items():
        if name.startswith(f"conditioner.{prefix}"):
            return f"{part}.{name.removeprefix(f'conditioner.{prefix}')}"
    if not name.startswith("network."):
        raise Refused(
            sentence("a LoRA file", "changes of the network or of text encoders", name, "Export the merged model")
        )
    return f"{loaded.part}.{name.removeprefix('network.')}"
