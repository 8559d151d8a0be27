"""The loop: it knows signals, terms and hooks, and nothing of any loss, adaptation or data format."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import NoEffect, NonFinite, Refused, sentence
from luthier.core.files import write_json
from luthier.core.protocols import Context, Hook, Objective, Optimiser, Ran, Schedule
from luthier.core.streams import seed_of
from luthier.train.calibration import FeedCalibration
from luthier.train.checkpoint import Snapshot, latest, newest, save
from luthier.train.company import Company
from luthier.train.feed import Feed
from luthier.train.heap import keep_freed
from luthier.train.policy import Policy
from luthier.train.scaling import LossScale
from luthier.train.settings import Training
from luthier.train.sharding import check_rules, gathered, keep_whole, scattered, shard, total_norm, unsynchronised
from luthier.train.step import Stepper, StepResult

Event = Callable[[Mapping[str, Any]], None]


@dataclass
class Job:
    """One training run, every part already built.

    out: where checkpoints go (None: nowhere). identity: hash of recipe and data, checked on resume. accelerator: an
    accelerate.Accelerator, or None for one plain process.
    """

    policy: Policy
    objective: Objective
    feed: Feed
    settings: Training
    optimiser: Optimiser
    schedule: Schedule | None = None
    hooks: Sequence[Hook] = ()
    seed: int = 0
    out: Path | None = None
    identity: str = ""
    accelerator: Any = None
    on_event: Event | None = None
    handles: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a run did: steps, curves, trace of hooks, cost, and whether it was interrupted."""

    steps: int
    curves: list[dict[str, Any]]
    trace: list[Ran]
    cost: dict[str, float]
    interrupted: bool = False
    skipped: list[str] = field(default_factory=list)


class Loop:
    """Runs a job; `run()` may be called once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.steps = job.settings.total_steps(len(job.feed))
        self.hooks = [*getattr(job.policy.attached, "hooks", tuple)(), *job.hooks]
        self.trace: list[Ran] = []
        self.curves: list[dict[str, Any]] = []
        self.tokens, self.unit = 0, str(getattr(job.feed, "unit", "tokens"))
        self.spent = 0.0
        self.began = 0.0
        self.stop = False

    @cached_property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """What trains, read after calibration and after the model was prepared for several processes."""
        _ = self.stepper
        return list(self.job.policy.attached.named_parameters())

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The same without names."""
        return [p for _, p in self.named]

    @cached_property
    def optimiser(self) -> Any:
        """The torch optimiser, prepared for several processes where there are."""
        check_rules(self.parameters, self.job.optimiser.name)
        self.scale.check(self.parameters)
        made = self.job.optimiser.build(self.named, self.job.settings.lr)
        self.base_lrs = [g["lr"] for g in made.param_groups]
        return made if self.job.accelerator is None else self.job.accelerator.prepare_optimizer(made)

    @cached_property
    def scale(self) -> LossScale:
        """The loss scale of fp16, or none."""
        return LossScale(getattr(self.job.accelerator, "scaler", None))

    @cached_property
    def stepper(self) -> Stepper:
        """What computes gradients."""
        accelerator = self.job.accelerator
        hooks = [h for h in self.hooks if "terms" in h.points]
        if accelerator is None:
            return Stepper(self.job.policy, self.job.objective, hooks, _same, torch.Tensor.backward, ExitStack)
        world, view = accelerator.num_processes, self.job.policy.view
        if world > 1 and (self.job.settings.shard or accelerator.is_fsdp2):
            if not view.spreads:
                raise Refused(sentence("sharding (train.shard, or FSDP of a launcher)", "a model whose layers run in its forward alone",
                                       "an image model", "Train it as copies: leave train.shard out"))  # fmt: skip
            view.wrapped = shard(view.module, accelerator.device)
            waiting = partial(unsynchronised, view.wrapped)
        else:
            view.wrapped = accelerator.prepare_model(view.module)
            waiting = partial(accelerator.no_sync, view.wrapped)
        reduce = _same if world == 1 else lambda t: accelerator.reduce(t.detach(), "sum")
        return Stepper(self.job.policy, self.job.objective, hooks, reduce, accelerator.backward, waiting, world)

    def context(self, step: int) -> Context:
        """What hooks see at a step."""
        policy = self.job.policy
        return Context(step, self.steps, self.job.seed, policy.view.module, policy.attached, self.job.handles,
                       optimiser=self.__dict__.get("optimiser"))  # fmt: skip

    def run(self, resume: bool = False) -> Outcome:
        """Train to the end, or to Ctrl-C, which saves and stops. Raises NonFinite with the rows of a bad step."""
        with self.company.watched(self._saved):
            return self._run(resume)

    @cached_property
    def company(self) -> Company:
        """All processes of this run. Collective where there are several."""
        return Company.of(self.job.accelerator)

    def _saved(self) -> str:
        found = None if self.job.out is None else newest(self.job.out)
        if found is None:
            return "No checkpoint was written yet (train.save_every): start all of them again from the beginning."
        return f"Start all of them again with --resume: {found} is whole."

    def _run(self, resume: bool) -> Outcome:
        start, skipped = self._resume() if resume else (0, [])
        self.began = began = time.perf_counter()
        keep_freed()
        if start == 0:
            self._calibrate()
        assert self.optimiser is not None
        self.job.policy.view.wrapped.train()
        with self._interruptible():
            if start == 0:
                self._point("start", self.context(0))
            else:
                self._resumed(start)
            done = start
            for step in range(start, self.steps):
                self._step(step, began)
                done = step + 1
                self.stop = self._asked_to_stop()
                every = self.job.settings.save_every
                if self.stop or (every and done % every == 0 and done < self.steps):
                    self.save(done)
                if self.stop and done < self.steps:
                    break
            else:
                if start < self.steps or self.steps == 0:
                    self._point("end", self.context(self.steps))
        keep_whole(self.job.policy.view.wrapped)
        self.job.policy.view.wrapped.eval()
        return Outcome(done, self.curves, self.trace, self.cost(), self.stop and done < self.steps, skipped)

    def _phase(self, step: int) -> tuple[int, int]:
        """(step, steps) as the feed counts them; where it begins anew, the optimiser forgets."""
        at, of = self.job.feed.phase(step, self.steps)
        if step and at == 0:
            self.optimiser.state.clear()
        return at, of

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked to save and stop, so that all of them do so after the same step."""
        if not self.company.members:
            return self.stop
        asked = torch.tensor(float(self.stop), device=self.job.accelerator.device)
        return bool(self.job.accelerator.reduce(asked, "sum") > 0)

    def _resumed(self, step: int) -> None:
        for hook in self.hooks:
            hook.resumed(self.context(step))

    def _calibrate(self) -> None:
        """Let adaptations that want it look at the first batches; what trains may change by it."""
        job = self.job
        attached: Any = job.policy.attached
        for handle in getattr(attached, "handles", (attached,)):
            if batches := getattr(handle.adaptation, "calibration", 0):
                handle.calibrate(FeedCalibration(job.policy, job.objective, job.feed, self.context, batches, job.seed))

    def cost(self) -> dict[str, float]:
        """Seconds, tokens (or images) and forward passes of the whole run so far, earlier parts of a resumed run included."""
        forwards = {f"forwards_{k}": float(v) for k, v in self.job.policy.forwards.items()}
        return {
            "train_seconds": self.spent + time.perf_counter() - self.began,
            f"train_{self.unit}": float(self.tokens),
            **forwards,
        }

    def _step(self, step: int, began: float) -> None:
        ctx = self.context(step)
        accelerator = self.job.accelerator
        rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
        torch.manual_seed(seed_of(self.job.seed, "train.step" if rank == 0 else f"train.step.{rank}", step))
        micros = [self._batch_hooks(b, ctx) for b in self.job.feed.micros(step, rank, world)]
        micros = [b.to(self.parameters[0].device) for b in micros]
        with self._embedding_hooks(ctx):
            result = self.stepper(micros, ctx)
        if not math.isfinite(result.loss):
            self._not_finite(step, result, micros, "loss", result.loss)
        norm = self._norm()
        left_out = self.scale.overflowed(norm)
        if not left_out and not math.isfinite(norm):
            self._not_finite(step, result, micros, "gradient norm", norm)
        if not left_out:
            self._point("gradients", ctx, self.named)
        at, of = self._phase(step)
        factor = self.job.schedule.factor(at, of) if self.job.schedule else 1.0
        for group, lr in zip(self.optimiser.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        self.optimiser.step()
        attached: Any = self.job.policy.attached
        for handle in getattr(attached, "handles", (attached,)):
            if getattr(handle, "needs_stepped", False) and not left_out:
                handle.stepped(step)
        self.optimiser.zero_grad(set_to_none=True)
        if left_out:
            self._note(self.scale.told(step))
        else:
            self._point("stepped", ctx, self.named)
        self._log(step, result, norm, factor, began)

    def _norm(self) -> float:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if self.job.accelerator is not None:
            self.job.accelerator.unscale_gradients(self.optimiser)
        return total_norm(grads)

    def _batch_hooks(self, batch: Batch, ctx: Context) -> Batch:
        for hook in self.hooks:
            if "batch" in hook.points:
                before = ctx.changed
                batch = hook.batch(batch, ctx)  # type: ignore[attr-defined]
                self._ran(hook, "batch", ctx, ctx.changed - before)
        return batch

    @contextmanager
    def _embedding_hooks(self, ctx: Context) -> Iterator[None]:
        hooks = [h for h in self.hooks if "embeddings" in h.points]
        view: Any = self.job.policy.view.module
        if not hooks:
            yield
            return
        if not hasattr(view, "editing"):
            raise Refused(sentence(hooks[0].id, "a language model, whose token embeddings it edits", type(view).__name__,
                                   "Leave it out"))  # fmt: skip
        counts = dict.fromkeys((h.id for h in hooks), 0)

        def edit(x: Tensor, mask: Tensor) -> Tensor:
            for hook in hooks:
                before = ctx.changed
                x = hook.embeddings(x, mask, ctx)  # type: ignore[attr-defined]
                counts[hook.id] += ctx.changed - before
            return x

        with view.editing(edit):
            yield
        for hook in hooks:
            self._ran(hook, "embeddings", ctx, counts[hook.id])

    def _point(self, point: str, ctx: Context, *args: Any) -> None:
        for hook in self.hooks:
            if point in hook.points:
                before = ctx.changed
                getattr(hook, point)(*args, ctx)
                self._ran(hook, point, ctx, ctx.changed - before)

    def _ran(self, hook: Hook, point: str, ctx: Context, changed: int) -> None:
        if changed == 0 and not hook.may_idle and ctx.step == 0:
            raise NoEffect(f"{hook.id} requires something to change at {point!r}; it changed nothing in the first step. "
                           "Check its parameters and the data, or leave it out.")  # fmt: skip
        self.trace.append(Ran(ctx.step, point, hook.id, changed))

    def _note(self, text: str) -> None:
        if self.job.on_event:
            self.job.on_event({"kind": "note", "text": text})

    def _log(self, step: int, result: StepResult, norm: float, factor: float, began: float) -> None:
        self.tokens += result.tokens
        seconds = time.perf_counter() - began
        figures: Mapping[str, float] = getattr(self.job.feed, "figures", {})
        normed = {"grad_norm": norm} if math.isfinite(norm) else {}
        entry = {"step": step + 1, "loss": result.loss, **normed, "lr": self.job.settings.lr * factor,
                 self.unit: result.tokens, **({"trained": result.trained} if self.unit == "tokens" else {}), **figures,
                 **{f"term/{k}": v[0] for k, v in result.terms.items()}}  # fmt: skip
        if (step + 1) % self.job.settings.log_every == 0 or step + 1 == self.steps:
            self.curves.append(entry)
        if self.job.accelerator is not None and self.job.settings.tracker != "none":
            self.job.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step + 1)
        if self.job.on_event:
            self.job.on_event({"kind": "step", "steps": self.steps, "seconds": seconds, "unit": self.unit, **entry})

    def _not_finite(self, step: int, result: StepResult, micros: Sequence[Batch], what: str, value: float) -> None:
        rows = sorted({r for b in micros for r in b.rows})
        if self.job.out is not None:
            write_json(self.job.out / "not_finite.json", {"step": step, "rows": rows, "what": what,
                       "terms": {k: str(v[0]) for k, v in result.terms.items()}})  # fmt: skip
        shown = ", ".join(map(str, rows[:12])) + (" ..." if len(rows) > 12 else "")
        raise NonFinite(f"training requires a finite {what}; got {value} at step {step + 1} on rows {shown}. No "
                        "weight was changed by this step; lower the learning rate, or look at these rows "
                        "(not_finite.json).")  # fmt: skip

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps: gathered by all processes, written by the main one."""
        accelerator = self.job.accelerator
        if self.job.out is None:
            return
        with self.company.watched(self._saved):
            tensors = self.job.policy.attached.state()
            state = gathered(self.optimiser.state_dict())
            feeds = self._feeds()
        if accelerator is not None and not accelerator.is_main_process:
            return
        hooks = {h.id: dict(h.state()) for h in self.hooks if hasattr(h, "state") and h.state()} | feeds | self.scale.state()
        trace = [[r.step, r.point, r.hook, r.changed] for r in self.trace]
        snapshot = Snapshot(step, tensors, state, hooks, self.curves, self.job.identity, trace, self.cost())
        save(self.job.out, snapshot, self.job.settings.keep)

    def _feeds(self) -> dict[str, dict[str, Any]]:
        """State of every process's feed, which may hold samples of its own. Collective where there are several."""
        feed: Any = self.job.feed
        if not hasattr(feed, "state"):
            return {}
        states = self.company.gathered(dict(feed.state()))
        return {"feed" if rank == 0 else f"feed.{rank}": s for rank, s in enumerate(states) if s}

    def _resume(self) -> tuple[int, list[str]]:
        if self.job.out is None:
            return 0, []
        found, skipped = latest(self.job.out, self.job.identity)
        for told in skipped:
            self._note(told)
        if found is None:
            return 0, skipped
        self.job.policy.attached.load(found.adaptation)
        self.optimiser.load_state_dict(scattered(found.optimiser, self.optimiser))
        for hook in self.hooks:
            if hook.id in found.hooks:
                hook.load(found.hooks[hook.id])
        self.scale.load(found.hooks)
        own = "feed" if self.company.own == 0 else f"feed.{self.company.own}"
        if own in found.hooks:
            self.job.feed.load(found.hooks[own])  # type: ignore[attr-defined]
        self.curves = list(found.curves)
        self.trace = [Ran(*r) for r in found.trace]
        self.spent, self.tokens = found.cost["train_seconds"], int(found.cost[f"train_{self.unit}"])
        for kind, passes in found.cost.items():
            if kind.startswith("forwards_"):
                name = kind.removeprefix("forwards_")
                self.job.policy.forwards[name] = self.job.policy.forwards.get(name, 0) + int(passes)
        return found.step, skipped

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C asks the loop to save and stop; a second one stops at once."""

        def ask(*_: object) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True

        try:
            before = signal.signal(signal.SIGINT, ask)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _same(tensor: Tensor) -> Tensor:
    return tensor
