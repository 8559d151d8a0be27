"""Tiny real pipelines of diffusers with random weights, and small image files, made in a temporary place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch


def ddpm_folder(at: Path, size: int = 8, channels: int = 1, classes: int | None = None) -> Path:
    """A UNet2DModel with a DDPM scheduler, as diffusers' DDPMPipeline saves it."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 8),
                       norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes)  # fmt: skip
    unet.save_pretrained(at / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(at / "scheduler")
    return index(at, "DDPMPipeline", unet=["diffusers", "UNet2DModel"], scheduler=["diffusers", "DDPMScheduler"])


def dit_folder(at: Path, size: int = 8, classes: int = 10) -> Path:
    """A class-conditional DiT with a flow-matching scheduler, on pixels."""
    from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=2,
                                sample_size=size, patch_size=2, num_embeds_ada_norm=classes, norm_num_groups=4)  # fmt: skip
    for p in dit.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    dit.save_pretrained(at / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(at / "scheduler")
    return index(at, "DiTPipeline", transformer=["diffusers", "DiTTransformer2DModel"],
                 scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])  # fmt: skip


def stable_folder(at: Path) -> Path:
    """Text to image with latents: UNet2DConditionModel, CLIP text encoder and tokenizer, AutoencoderKL."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
                         down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
                         up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")).save_pretrained(at / "unet")  # fmt: skip
    AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
                  sample_size=16, down_block_types=("DownEncoderBlock2D",) * 2,
                  up_block_types=("UpDecoderBlock2D",) * 2).save_pretrained(at / "vae")  # fmt: skip
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    (at / "tokenizer").mkdir(parents=True)
    (at / "tokenizer" / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (at / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    facts = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
             "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}  # fmt: skip
    (at / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(facts))
    config = CLIPTextConfig(vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                            num_attention_heads=2, max_position_embeddings=12, bos_token_id=0, eos_token_id=1)  # fmt: skip
    CLIPTextModel(config).save_pretrained(at / "text_encoder")  # fmt: skip
    DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False).save_pretrained(
        at / "scheduler"
    )
    return index(at, "StableDiffusionPipeline", unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
                 text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
                 scheduler=["diffusers", "DDIMScheduler"])  # fmt: skip


def index(at: Path, name: str, **parts: list[str]) -> Path:
    (at / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.35.0", **parts}))
    return at


def digits(at: Path, n: int = 40, size: int = 8, channels: int = 1) -> Path:
    """An npz of grey or colour patterns, one kind per label."""
    g = np.random.default_rng(0)
    y = g.integers(0, 10, n)
    x = (g.random((n, size, size, channels)) * 60 + 19 * y[:, None, None, None]).astype(np.uint8)
    np.savez(at, x=x if channels == 3 else x[..., 0], y=y, classes=np.array([f"kind {chr(97 + i)}" for i in range(10)]))
    return at
