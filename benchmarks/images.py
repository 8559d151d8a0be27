"""Both sides of an image cell: denoising the same network on the same images, here and in the loop of diffusers' training scripts."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.clock import Clock

SHAPES = {"unet": (16, 3, 32, 24), "dit": (16, 3, 32, 24)}
"""network -> rows per step, channels, side, timed steps."""


def network(name: str) -> Any:
    """A UNet2DModel of 3.6 M parameters, or a DiT of 4.3 M, random weights, float32."""
    from diffusers import DiTTransformer2DModel, UNet2DModel

    torch.manual_seed(0)
    _, channels, side, _ = SHAPES[name]
    if name == "unet":
        return UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, layers_per_block=1,
                           block_out_channels=(32, 64, 128), attention_head_dim=32,
                           down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
                           up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"))  # fmt: skip
    return DiTTransformer2DModel(num_attention_heads=4, attention_head_dim=48, in_channels=channels, out_channels=channels,
                                 num_layers=6, sample_size=side, patch_size=4, num_embeds_ada_norm=10, norm_num_groups=32)  # fmt: skip


def pictures(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (8 batches) in [-1, 1] and their classes."""
    rows, channels, side, _ = SHAPES[name]
    g = torch.Generator().manual_seed(1)
    return torch.rand(8 * rows, channels, side, side, generator=g) * 2 - 1, torch.randint(10, (8 * rows,), generator=g)


def ours(name: str, limit: int = 1000) -> Clock:
    """Luthier's loop."""
    from luthier.adapt.attach import attach
    from luthier.core.config import build_component
    from luthier.core.sites import Sites
    from luthier.diffusion.schedules._scheduler import path_of
    from luthier.models.conditioning import ClassLabels, Conditioner
    from luthier.models.denoiser import DenoiserModule, DenoiserView
    from luthier.train.images import ImageFeed
    from luthier.train.loop import Job, Loop
    from luthier.train.policy import Policy
    from luthier.train.settings import Training

    rows, steps, clock = SHAPES[name][0], min(limit, SHAPES[name][3]), Clock()
    images, labels = pictures(name)
    module = DenoiserModule(network(name), Conditioner() if name == "unet" else ClassLabels(10, unconditional=True))
    attached = attach(module, build_component("full", "adapt", "adapt"), Sites(""), 0)
    path = path_of({"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"})
    policy = Policy(DenoiserView(module, path, "eps"), attached)
    feed = ImageFeed((images,), "image", ("image",), rows, 0, conditions={} if name == "unet" else {"label": labels})
    clock.ready()
    job = Job(policy, build_component("denoise", "diffusion", "objective"), feed,
              Training(steps=steps + 2, batch=rows, lr=1e-4, clip=1.0), build_component("adamw", "optim", "optimiser"),
              build_component("linear", "optim", "schedule"), (build_component({"clip_grad_norm": {"max_norm": 1.0}}, "optim", "clip"),),
              on_event=lambda e: clock.tick())  # fmt: skip
    Loop(job).run()
    return clock


def peer(name: str, limit: int = 1000) -> Clock:
    """The loop that diffusers documents: accelerate, a DataLoader, add_noise, mse, clip, AdamW."""
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from torch.utils.data import DataLoader, TensorDataset

    rows, steps, clock = SHAPES[name][0], min(limit, SHAPES[name][3]), Clock()
    accelerator = Accelerator(cpu=True)
    model, noises = network(name).train(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = get_scheduler("linear", optimiser, num_warmup_steps=0, num_training_steps=steps + 2)
    loader = DataLoader(TensorDataset(*pictures(name)), batch_size=rows, shuffle=True)
    model, optimiser, loader, schedule = accelerator.prepare(model, optimiser, loader, schedule)
    clock.ready()
    while len(clock.marks) < steps + 2:
        for clean, label in loader:
            noise = torch.randn_like(clean)
            t = torch.randint(0, 1000, (len(clean),))
            x = noises.add_noise(clean, noise, t)
            with accelerator.accumulate(model):
                out = model(x, t) if name == "unet" else model(x, t, class_labels=label)
                accelerator.backward(F.mse_loss(out.sample, noise))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
            clock.tick()
            if len(clock.marks) == steps + 2:
                break
    return clock
