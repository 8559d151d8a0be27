"""Writing pages from the code: what all of its files share."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
ROOMS = {
    "adapt": "What trains",
    "objectives": "Losses",
    "regularise": "Regularisers",
    "optim": "Optimisers, gradient transforms, schedules",
    "edit": "Local edits",
    "data": "Choosing rows",
    "reward": "Rewards",
    "merge": "Merges",
    "decode": "Decoding",
    "diffusion": "Diffusion",
    "embed": "Embedding",
    "vision": "Vision",
    "measure": "Measures",
    "loops": "Outer procedures",
}
"""Titles of the rooms in the order of the navigation."""
