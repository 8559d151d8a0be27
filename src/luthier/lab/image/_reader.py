"""A small learnt reader of the same attributes, so that what rewards and what judges need not share their templates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError, sentence
from luthier.core.streams import stream
from luthier.lab.image._oracle import as_pixels, templates
from luthier.lab.image._shapes import ATTRIBUTES, SHAPES, SIZE, indices

HEADS = {name: len(SHAPES) if name == "shape" else len(values) for name, values in ATTRIBUTES.items()}


class Reader(nn.Module):
    """Two convolutions, a hidden layer and a head per attribute, 92 thousand numbers; colours of concepts are not read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(768, 96), nn.SiLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(96, size) for name, size in HEADS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Log-probabilities of each attribute's values, (N, values), for images (N, 3, 16, 16) in [-1, 1] or bytes."""
        x = self.body(as_pixels(images, "reader").view(-1, 3, SIZE, SIZE))
        return {name: head(x).log_softmax(-1) for name, head in self.heads.items()}

    def log_probability(self, images: Tensor, asked: dict[str, str]) -> Tensor:
        """Sum of the log-probabilities of what is asked, (N,); differentiable in the images."""
        told, want = self(images), indices([asked])[0].tolist()
        parts = [told[name][:, i] for name, i in zip(ATTRIBUTES, want, strict=True) if i >= 0]
        return torch.stack(parts).sum(0) if parts else told["count"][:, 0] * 0

    @torch.no_grad()
    def index(self, images: Tensor) -> Tensor:
        """Most probable attribute numbers, (N, 6) in the order of ATTRIBUTES; the colour of a concept is -1."""
        told = self(images)
        found = torch.stack([told[name].argmax(-1) for name in ATTRIBUTES], -1)
        names = list(ATTRIBUTES)
        concept = found[:, names.index("shape")] >= len(ATTRIBUTES["shape"])
        found[concept, names.index("colour")] = -1
        return found


def worn(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Images as a hasty painter would leave them: faded, shifted in colour, blurred, noisy, a patch painted over."""
    n = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, 1, 1, generator=generator)

    x = pixels.view(n, 3, SIZE, SIZE) * uniform(0.6, 1.2, 1) + uniform(-0.25, 0.25, 3)
    soft = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, uniform(0, 0.5, 1))
    x = x + uniform(0, 0.5, 1) * torch.randn(x.shape, generator=generator)
    top, left = torch.randint(SIZE - 1, (2, n, 1, 1, 1), generator=generator)
    rows, columns = torch.arange(SIZE).view(1, 1, -1, 1), torch.arange(SIZE).view(1, 1, 1, -1)
    inside = (rows >= top) & (rows < top + 2) & (columns >= left) & (columns < left + 2)
    return torch.where(inside, uniform(-1, 1, 3), x)


def train_reader(steps: int, seed: int, batch: int = 192, lr: float = 3e-3) -> Reader:
    """Learn to read worn templates, concepts among them. Seconds; the same numbers each time on one machine."""
    torch.manual_seed(seed)
    reader, known = Reader(), templates()
    search = torch.optim.AdamW(reader.parameters(), lr=lr, weight_decay=0.01)
    for step in range(steps):
        g = stream(seed, "image.reader", step)
        at = torch.randint(len(known.pixels), (batch,), generator=g)
        told = reader(worn(known.pixels[at], g))
        losses = [nn.functional.nll_loss(told[name], want, ignore_index=-1)
                  for name, want in zip(ATTRIBUTES, known.index[at].unbind(-1), strict=True)]  # fmt: skip
        search.zero_grad()
        torch.stack(losses).sum().backward()
        search.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        search.step()
    return reader.eval().requires_grad_(False)


def save_reader(reader: Reader, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Half precision, safetensors."""
    from safetensors.torch import save_file

    state: dict[str, Any] = {k: v.half().contiguous() for k, v in reader.state_dict().items()}
    save_file(state, path, metadata or {})
    path.chmod(0o644)


def load_reader(path: Path) -> Reader:
    """The reader of a file, frozen. Raises ModelError."""
    from safetensors.torch import load_file

    if not path.is_file():
        do = "Rebuild it with `luthier lab build image`"
        raise ModelError(sentence("lab:image", f"a learnt reader at {path}", "none", do))
    reader = Reader()
    reader.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return reader.eval().requires_grad_(False)
