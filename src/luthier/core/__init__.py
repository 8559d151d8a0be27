"""The protocols everything rests on; free of torch at import time."""

from luthier.core.algebra import Sum, Weighted
from luthier.core.batch import Batch
from luthier.core.card import Card, Needs
from luthier.core.component import Component, component
from luthier.core.protocols import (
    EXACT,
    LOSSY,
    NEVER,
    Adaptation,
    Attached,
    Build,
    Built,
    Calibration,
    Choice,
    Context,
    DataContext,
    Decode,
    DecodeView,
    Denoiser,
    Guidance,
    Hook,
    Level,
    Measure,
    MeasureContext,
    Merge,
    MergeRule,
    NoisePath,
    Objective,
    Optimiser,
    Procedure,
    Reading,
    Reward,
    Row,
    Sampler,
    Schedule,
    Select,
    Subject,
    Times,
    Weighting,
)
from luthier.core.signals import Signals
from luthier.core.sites import Site, Sites
from luthier.core.streams import stream
from luthier.core.terms import Terms

__all__ = [
    "EXACT", "LOSSY", "NEVER", "Adaptation", "Attached", "Batch", "Build", "Built", "Calibration", "Card", "Choice",
    "Component", "Context",
    "DataContext", "Decode", "DecodeView", "Denoiser", "Guidance", "Hook", "Level", "Measure", "MeasureContext", "Merge",
    "MergeRule", "Needs", "NoisePath", "Objective", "Optimiser", "Procedure", "Reading", "Reward", "Row", "Sampler", "Schedule",
    "Select", "Signals", "Site", "Sites", "Subject", "Sum", "Terms", "Times", "Weighted", "Weighting", "component", "stream",
]  # fmt: skip
