"""The path of a diffusers scheduler, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core import NoisePath
from luthier.core.errors import ModelError, sentence
from luthier.diffusion.schedules._kinds import Kind
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.ve import VE
from luthier.diffusion.schedules.vp_table import VPTable

TABLES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SAID: Mapping[str, Kind] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


def path_of(config: Mapping[str, Any]) -> NoisePath:
    """The path that a scheduler_config.json describes; an empty one is DDPM's. Raises ModelError for tables we do not know."""
    name = str(config.get("_class_name", ""))
    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas"):
        return Flow()
    if name.startswith("EDM"):
        return VE(t_min=float(config.get("sigma_min", 0.002)), t_max=float(config.get("sigma_max", 80.0)))
    steps, betas = int(config.get("num_train_timesteps", 1000)), config.get("trained_betas")
    zero = bool(config.get("rescale_betas_zero_snr", False))
    if betas is not None:
        return VPTable(steps=steps, betas=tuple(float(b) for b in betas), zero_snr=zero)
    schedule = str(config.get("beta_schedule", "linear"))
    if schedule not in TABLES:
        known = ", ".join(TABLES)
        raise ModelError(sentence("a scheduler", f"a beta_schedule of {known}", schedule, "Give its betas as trained_betas"))  # fmt: skip
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    return VPTable(schedule=schedule, steps=steps, beta_start=start, beta_end=end, zero_snr=zero)  # type: ignore[arg-type]


def kind_said(config: Mapping[str, Any]) -> Kind:
    """What the scheduler says that the network predicts. Raises ModelError for a kind that we do not know."""
    if "FlowMatch" in str(config.get("_class_name", "")):
        return "velocity"
    said = str(config.get("prediction_type", "epsilon"))
    if said not in SAID:
        raise ModelError(
            sentence("a scheduler", f"a prediction_type of {', '.join(SAID)}", said, "Correct scheduler_config.json")
        )
    return SAID[said]
