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
    Calibration,
    Choice,
    Context,
    DataContext,
    Decode,
    DecodeView,
    Denoiser,
    Hook,
    Measure,
    MeasureContext,
    Merge,
    MergeRule,
    Objective,
    Optimiser,
    Procedure,
    Reading,
    Reward,
    Row,
    Schedule,
    Select,
    Subject,
)
from luthier.core.signals import Signals
from luthier.core.sites import Site, Sites
from luthier.core.streams import stream
from luthier.core.terms import Terms

__all__ = [
    "EXACT", "LOSSY", "NEVER", "Adaptation", "Attached", "Batch", "Calibration", "Card", "Choice", "Component", "Context",
    "DataContext", "Decode", "DecodeView", "Denoiser", "Hook", "Measure", "MeasureContext", "Merge", "MergeRule", "Needs",
    "Objective", "Optimiser", "Procedure", "Reading", "Reward", "Row", "Schedule", "Select", "Signals", "Site", "Sites",
    "Subject", "Sum", "Terms", "Weighted", "component", "stream",
]  # fmt: skip
