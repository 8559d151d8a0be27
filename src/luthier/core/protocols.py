"""What rooms promise to the engine and to one another. Rooms import these, never one another.

Every class here is free of torch at import time; tensors appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from luthier.core.batch import Batch
from luthier.core.component import Component
from luthier.core.signals import Signals
from luthier.core.sites import Site, Sites
from luthier.core.terms import Terms

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor, nn

Row = Mapping[str, Any]


# ---------------------------------------------------------------- objectives
class Objective(Component):
    """A loss: signals in, unreduced terms out. Objectives add and scale: `DPO() + 0.05 * NLL(on="chosen")`."""

    room: ClassVar[str] = "objectives"

    def __call__(self, batch: Batch, s: Signals) -> Terms | tuple[Terms, ...]:
        raise NotImplementedError

    def brings(self, shape: tuple[int, ...], seed: int) -> Mapping[str, nn.Module]:
        """Modules that train beside the model, by the handle under which they are asked for; none for most.

        shape: of one input, as the model sees it. They are saved and resumed with what the adaptation trains.
        """
        return {}

    def __add__(self, other: Objective) -> Objective:
        from luthier.core.algebra import Sum

        return Sum.of(self, other)

    def __mul__(self, weight: float) -> Objective:
        from luthier.core.algebra import Weighted

        return Weighted(self, float(weight))

    __rmul__ = __mul__


# --------------------------------------------------------------- adaptations
class Merge(NamedTuple):
    """Whether an adaptation can become plain weights. kind: "exact", "lossy" or "never"; why: the reason if not exact."""

    kind: Literal["exact", "lossy", "never"]
    why: str = ""


EXACT = Merge("exact")


def LOSSY(why: str) -> Merge:  # noqa: N802 - reads as a constant in component bodies
    """Merging changes the numbers, for this reason."""
    return Merge("lossy", why)


def NEVER(why: str) -> Merge:  # noqa: N802
    """Merging is impossible, for this reason."""
    return Merge("never", why)


class Calibration(Protocol):
    """What an adaptation may look at before the first step (`attached.calibrate(this)`), on the run's first batches."""

    seed: int

    def forwards(self) -> Iterator[Batch]:
        """Each batch after its forward pass in evaluation mode, without gradient; forward hooks see what flows."""
        ...

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[int]:
        """For each step of rows: `p.grad` is the gradient of the run's loss, for exactly these parameters."""
        ...


class Adaptation(Component):
    """What trains. `attach` is written once in the adapt room for each kind of adaptation.

    calibration: batches that it wants to look at before the first step; its handle's `calibrate` is called once, in fresh
    runs only, and may change what trains; a resumed run restores that by `load`. A handle may also give `hooks()`, which the
    loop runs before the recipe's own.
    """

    room: ClassVar[str] = "adapt"
    merge: ClassVar[Merge] = EXACT
    sites: ClassVar[Sites] = Sites("all-linear")

    @property
    def calibration(self) -> int:
        """Batches to look at before the first step; 0 for most."""
        return 0

    def attach(self, model: nn.Module, sites: Sites, seed: int) -> Attached:
        """Change the model in place; the handle undoes it bit for bit."""
        raise NotImplementedError


class Attached(Protocol):
    """A live adaptation: what the engine, checkpoints, merges and exports see of it."""

    adaptation: Adaptation

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable parameters with stable names."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """The model as it was before attaching, for the duration of the block (the frozen reference)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that must be saved to restore the adaptation."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore from `state`; missing or foreign names are a CheckpointError."""
        ...

    def merged(self) -> dict[str, Tensor]:
        """Changed weights only, by the base model's own names. Raises Refused where merge is NEVER."""
        ...

    def folding(self) -> AbstractContextManager[dict[str, Tensor]]:
        """What to lay over the model's own weights inside the block to have the merged model."""
        ...

    def forget_base(self) -> None:
        """Free what is kept only for `disabled` and `detach`, which refuse from then on."""
        ...

    def detach(self) -> None:
        """Restore the base model bit for bit."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Counts for reports: trained and total parameters, sites."""
        ...


# --------------------------------------------------------------------- hooks
@dataclass(frozen=True)
class Ran:
    """One entry of the trace: at which step and point which hook changed how many things."""

    step: int
    point: str
    hook: str
    changed: int


class Hook(Component):
    """A regulariser or transform: implements one or several of the engine's points; each returns how much it changed.

    Points, in the order of a step: `batch(batch, ctx)` may return a changed batch; `embeddings(x, mask, ctx)` changes token
    embeddings during training forwards; `terms(batch, s, ctx)` adds loss terms; `gradients(named, ctx)` edits gradients in
    place before the optimiser; `stepped(named, ctx)` acts on parameters after it. `start(ctx)` and `end(ctx)` frame the run.
    A hook that changed nothing at a point is an error unless `may_idle`. A run that goes on from a checkpoint calls
    `resumed(ctx)` in place of `start`, for what no checkpoint holds.
    """

    room: ClassVar[str] = "regularise"
    may_idle: ClassVar[bool] = False
    points: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """Tensors and JSON values to save with a checkpoint; stateless hooks return {}."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from `state`."""

    def resumed(self, ctx: Context) -> None:
        """Put back what `start` hung into the live model; called after `load`, nothing by default."""


POINTS = ("start", "batch", "embeddings", "terms", "gradients", "stepped", "end")


@dataclass
class Context:
    """What a hook may see and use at a point.

    generator(role): the named random stream of this step; model: the policy's module; attached: the adaptation's handle;
    optimiser: the live torch optimiser; handles: objects handed in by the recipe; note(changed): report how many things were
    changed.
    """

    step: int
    steps: int
    seed: int
    model: nn.Module | None = None
    attached: Attached | None = None
    handles: Mapping[str, Any] = field(default_factory=dict[str, Any])
    changed: int = 0
    optimiser: torch.optim.Optimizer | None = None

    def generator(self, role: str) -> Generator:
        """The named stream of this step."""
        from luthier.core.streams import stream

        return stream(self.seed, role, self.step)

    def note(self, changed: int) -> None:
        """Count what the hook changed; doing nothing is an error unless the hook may idle."""
        self.changed += int(changed)


# ------------------------------------------------------------------ denoisers
class Denoiser(Protocol):
    """A denoising network as objectives, samplers and guidance run it.

    path: how clean images and noise mix at time t (`luthier.diffusion.schedules`); kind: what the network predicts ("x0",
    "eps", "v", "velocity").
    """

    @property
    def path(self) -> Any: ...
    @property
    def kind(self) -> str: ...

    def __call__(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, C, H, W) at times t (B,) of the path -> prediction (B, C, H, W). No condition: the unconditional one."""
        ...


class Level(NamedTuple):
    """A path at time t: x_t = alpha x0 + sigma eps, and the derivatives of both by t. All of t's shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


class NoisePath(Component):
    """How clean data and noise mix: x_t = alpha(t) x0 + sigma(t) eps. Time 0 is clean: alpha 1, sigma 0.

    t_min, t_max: where denoisers are asked. Noise rises with t. `luthier.diffusion.schedules` explains how all fits together.
    """

    room: ClassVar[str] = "diffusion"
    t_min: float
    t_max: float

    def level(self, t: Tensor) -> Level:
        """alpha, sigma and their derivatives at times t of any shape, in float64 where the device has it."""
        raise NotImplementedError

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) has this value, within [0, t_max]."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """t in the units that networks made for this path take."""
        return 1000.0 * t


class Times(Component):
    """Which times a denoiser is trained at."""

    room: ClassVar[str] = "diffusion"

    def __call__(self, uniform: Tensor, path: NoisePath) -> Tensor:
        """Uniform numbers in (0, 1), any shape, -> times of the path: the inverse distribution function."""
        raise NotImplementedError


class Weighting(Component):
    """How much the squared error at a time counts."""

    room: ClassVar[str] = "diffusion"

    def __call__(self, path: NoisePath, t: Tensor, kind: str) -> Tensor:
        """Factor, of t's shape, on the squared error of a prediction of this kind."""
        raise NotImplementedError


class Sampler(Component):
    """Takes a noisy batch one step towards clean data; `luthier.diffusion.samplers` has the driver."""

    room: ClassVar[str] = "diffusion"
    evaluations: ClassVar[int] = 1

    def step(self, at: Any, state: Any) -> tuple[Tensor, Any]:
        """(x at the next time, state for the next step) from what the driver shows (`samplers._driver.Here`)."""
        raise NotImplementedError


class Guidance(Component):
    """Changes what is sampled: conditions, starting noise, denoiser, which samples are kept. Each does nothing by default."""

    room: ClassVar[str] = "diffusion"

    def condition(self, condition: Mapping[str, Tensor] | None, noise: Any) -> Mapping[str, Tensor] | None:
        """The conditions to use instead; `noise` is the sample's source of randomness."""
        return condition

    def start(self, x: Tensor, t: Tensor, denoiser: Denoiser, condition: Mapping[str, Tensor] | None) -> Tensor:
        """The starting noise x (B, ...) at time t (B,) to use instead."""
        return x

    def guide(self, denoiser: Denoiser, handles: Mapping[str, Any]) -> Denoiser:
        """The denoiser to use instead; handles: other denoisers by name ("reference")."""
        return denoiser

    def renoise(self, z: Tensor, clean: Tensor, handles: Mapping[str, Any]) -> Tensor:
        """The noise (B, ...) that a step adds to its clean estimate, in place of the normal numbers z."""
        return z

    def choose(self, x: Tensor) -> Tensor | None:
        """Which of the finished samples (B, ...) to keep, (k,) ascending; None keeps all."""
        return None


# ----------------------------------------------------------------- optimisers
class Optimiser(Component):
    """Builds a torch optimiser over named parameters."""

    room: ClassVar[str] = "optim"

    def build(self, named: Sequence[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        """The optimiser; `lr` is the peak learning rate, schedules multiply it."""
        raise NotImplementedError


class Schedule(Component):
    """Learning-rate factor in [0, 1] by step."""

    room: ClassVar[str] = "optim"

    def factor(self, step: int, steps: int) -> float:
        """Factor for optimiser step `step` (from 0) of `steps`."""
        raise NotImplementedError


# ----------------------------------------------------------------------- data
@dataclass(frozen=True)
class Choice:
    """What a selector chose: index (k,) into the given rows, ascending; score (n,) of every row; reason in words."""

    index: Tensor
    score: Tensor
    reason: str


class Select(Component):
    """Chooses rows; never copies, edits or loses them."""

    room: ClassVar[str] = "data"

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Choice:
        raise NotImplementedError


@dataclass(frozen=True)
class Built:
    """What a builder made: new rows, for each the number of the row that it came from, and what happened in sentences."""

    rows: list[Row]
    source: list[int]
    notes: tuple[str, ...] = ()


class Build(Component):
    """Makes rows of the kind `makes` from rows with several answers, of the kinds in its needs; never edits what it is given."""

    room: ClassVar[str] = "data"
    makes: ClassVar[str] = "preference"

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Built:
        raise NotImplementedError


@dataclass(frozen=True)
class DataContext:
    """What data components may ask for: a seed, an embedder texts -> (n, d), a token counter.

    Of the model to be tuned: score, rows -> mean log-prob of each answer (n,); gradients, rows -> projected gradients of
    each row's loss (n, d).
    """

    seed: int = 0
    embed: Callable[[Sequence[str]], Tensor] | None = None
    count_tokens: Callable[[str], int] | None = None
    score: Callable[[Sequence[Row]], Tensor] | None = None
    gradients: Callable[[Sequence[Row]], Tensor] | None = None


# --------------------------------------------------------------------- reward
class Reward(Component):
    """Scores completions: one float per completion, higher is better."""

    room: ClassVar[str] = "reward"

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Tensor:
        """rows[i] is the prompt row of completions[i]; returns (n,)."""
        raise NotImplementedError


# ---------------------------------------------------------------------- loops
class Procedure(Component):
    """An outer procedure: how the policy's own samples become training data, round after round.

    gives: the kind of its batches.
    """

    room: ClassVar[str] = "loops"
    gives: ClassVar[str] = "text"

    def feed(self, parts: Any) -> Any:
        """A feed of batches (`train.feed.Feed`) from what the recipe hands in (`loops._parts.FeedParts`)."""
        raise NotImplementedError


# ---------------------------------------------------------------------- merge
class MergeRule(Component):
    """Merges one tensor of several models: base and deltas (model minus base, in the recipe's order) at a site."""

    room: ClassVar[str] = "merge"

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        raise NotImplementedError


# --------------------------------------------------------------------- decode
class Decode(Component):
    """Changes next-token logits during sampling."""

    room: ClassVar[str] = "decode"

    def __call__(self, logits: Tensor, view: DecodeView) -> Tensor:
        """logits (B, V) of this step -> changed logits (B, V)."""
        raise NotImplementedError

    def guides(self, prompt: Any, earlier: Sequence[str]) -> Mapping[str, Any]:
        """Prompts that the same model reads beside the given one, by the names under which `helpers` then has their logits.

        earlier: the answers to this prompt so far. A component that gives such prompts has its answers drawn one after the other.
        """
        return {}


@dataclass(frozen=True)
class DecodeView:
    """What a decoding component sees at a step: tokens so far (B, T) with mask, step number, logits of helper models.

    The last `step` tokens were drawn. roll: completes prompts by a helper model, with random numbers (rows, new tokens) that
    are given; an end token is left out. text: tokens -> text without special tokens. stop: end tokens. Outside of generation
    there are none of these.
    """

    tokens: Tensor
    mask: Tensor
    step: int
    helpers: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    roll: Callable[[str, Sequence[Sequence[int]], Tensor], list[list[int]]] | None = None
    text: Callable[[Sequence[int]], str] | None = None
    stop: tuple[int, ...] = ()


# -------------------------------------------------------------------- measure
@dataclass(frozen=True)
class Reading:
    """One measured figure: value, its per-item values for paired comparison, and which direction is better (0: neither)."""

    name: str
    value: float
    items: tuple[float, ...] = ()
    better: Literal[-1, 0, 1] = 1
    unit: str = ""
    axis: str = "quality"


class Subject(Protocol):
    """What measures see of a finished run: generation, log-probs, embeddings, rows, cost."""

    def generate(
        self,
        prompts: Sequence[str],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        max_new: int = 64,
        role: str = "measure",
    ) -> list[list[str]]:
        """`samples` completions per prompt; temperature 0 is greedy."""
        ...

    def logp(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(sum of response log-probs (n,), number of response tokens (n,))."""
        ...

    def base(self) -> Subject:
        """The model before training, as a subject of its own."""
        ...


class Measure(Component):
    """Measures a subject on rows; never trains."""

    room: ClassVar[str] = "measure"

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        raise NotImplementedError


@dataclass(frozen=True)
class MeasureContext:
    """Handles of a measure: seed, embedder, verifier (reward), cost figures of the run, declared old data.

    handles: for images, "images" (test images by part, in the model's range) and "read" (a world's exact reader, or None).
    """

    seed: int = 0
    embed: Callable[[Sequence[str]], Tensor] | None = None
    verify: Callable[[Row, str], float] | None = None
    cost: Mapping[str, float] = field(default_factory=dict[str, float])
    old: Sequence[Row] = ()
    truth: Callable[[Row], Mapping[str, float] | None] | None = None
    handles: Mapping[str, Any] = field(default_factory=dict[str, Any])
