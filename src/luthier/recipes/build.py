"""From a typed recipe to a job: the one place where rooms meet."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.core import (
    Adaptation,
    Build,
    DataContext,
    Decode,
    Hook,
    Measure,
    Objective,
    Optimiser,
    Reward,
    Schedule,
    Select,
    Sites,
    Sum,
)
from luthier.core.config import build_component, name_and_parameters
from luthier.core.errors import ConfigError, Refused, UnknownComponent, sentence
from luthier.core.registry import find
from luthier.core.signals import base_signals, split
from luthier.models.generation import Sampling
from luthier.models.language import LanguageModule, LanguageView
from luthier.models.loading import hidden_of
from luthier.recipes.mixing import mixture_of
from luthier.recipes.places import model_source
from luthier.recipes.recipe import Recipe, samples
from luthier.recipes.rows import Rows, Splits, advice, kind_after, load_splits, retained
from luthier.train.feed import Feed, RowFeed
from luthier.train.loop import Event, Job
from luthier.train.mixture import Mixture
from luthier.train.policy import Policy


@dataclass
class Parts:
    """The components of a recipe, constructed."""

    objective: Objective
    adapt: list[tuple[Adaptation, Sites]]
    hooks: list[Hook]
    optimiser: Optimiser
    schedule: Schedule | None
    reward: Reward | None
    measures: list[Measure]


@dataclass
class Prepared:
    """A recipe made ready: everything but the training itself.

    kit: what its kind of model does with it (`recipes.kits.Kit`). helpers: models that decoding components listen to.
    """

    recipe: Recipe
    parts: Parts
    splits: Splits
    encoded: Any
    policy: Policy
    feed: Feed
    job: Job
    notes: list[str] = field(default_factory=list)
    kit: Any = None
    helpers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _popped(spec: Any, at: str, key: str) -> tuple[Any, Any]:
    """Take a slot's own key (weight, sites) out of a component's parameters."""
    if isinstance(spec, Mapping) and len(spec) == 1:
        name, given = name_and_parameters(spec, at)
        value = given.pop(key, None)
        return {name: given}, value
    return spec, None


def build_objective(spec: Any) -> Objective:
    """One objective, or the weighted sum of a list."""
    if isinstance(spec, Objective):
        return spec
    members = []
    for i, one in enumerate(spec if isinstance(spec, list | tuple) else [spec]):
        at = f"objective[{i}]"
        plain, weight = _popped(one, at, "weight")
        room = find(name_and_parameters(plain, at)[0]).room
        made: Objective = build_component(plain, room if room == "diffusion" else "objectives", at)
        members.append(made if weight is None else made * float(weight))
    return members[0] if len(members) == 1 else Sum.of(*members)


def build_adapt(spec: Any) -> list[tuple[Adaptation, Sites]]:
    """Adaptations with the sites each acts on."""
    out = []
    for i, one in enumerate(spec if isinstance(spec, list | tuple) else [spec]):
        plain, sites = _popped(one, f"adapt[{i}]", "sites")
        made: Adaptation = build_component(plain, "adapt", f"adapt[{i}]")
        out.append((made, made.sites if sites is None else Sites(sites, made.sites.kinds)))
    return out


def build_hook(spec: Any, at: str) -> Hook:
    """A hook of the rooms regularise or optim."""
    if isinstance(spec, Hook):
        return spec
    try:
        made = build_component(spec, "regularise", at)
    except (UnknownComponent, ConfigError):
        name, _ = name_and_parameters(spec, at)
        made = build_component(spec, find(name).room, at)
    if not isinstance(made, Hook):
        raise ConfigError(sentence(at, "a regulariser or gradient transform", made.id, "Put it into its own slot"))
    return made


def named_measures(recipe: Recipe) -> set[str]:
    """Names in the recipe's `measure` as they are written, those of suites too."""
    return {next(iter(m)) if isinstance(m, dict) else m for m in recipe.measure if isinstance(m, str | dict)}


def build_measures(specs: Sequence[Any]) -> list[Measure]:
    """Measures by component name or suite name."""
    from luthier.measure.suites import SUITES

    out: list[Measure] = []
    for i, spec in enumerate(specs):
        if isinstance(spec, str) and spec in SUITES:
            out += [build_component(s, "measure", f"measure[{i}]") for s in SUITES[spec]]
        else:
            out.append(build_component(spec, "measure", f"measure[{i}]"))
    unique: dict[Any, Measure] = {}
    for one in out:
        unique.setdefault(repr(one), one)
    return list(unique.values())


def build_decode(specs: Sequence[Any]) -> tuple[Decode, ...]:
    """Decoding components in the order they act, for all that is generated while measuring."""
    return tuple(build_component(s, "decode", f"decode[{i}]") for i, s in enumerate(specs))


def build_parts(recipe: Recipe) -> Parts:
    """Construct every component of a recipe; the global gradient clip of `train.clip` becomes the last hook."""
    hooks = [build_hook(s, f"regularise[{i}]") for i, s in enumerate(recipe.regularise)]
    if recipe.train.clip and not any("clip" in h.id for h in hooks):
        hooks.append(build_component({"clip_grad_norm": {"max_norm": recipe.train.clip}}, "optim", "train.clip"))
    schedule = recipe.schedule
    if isinstance(schedule, str) and recipe.train.warmup:
        schedule = {schedule: {"warmup": recipe.train.warmup}}
    return Parts(
        build_objective(recipe.objective), build_adapt(recipe.adapt), hooks,
        build_component(recipe.optimiser, "optim", "optimiser"),
        None if schedule is None else build_component(schedule, "optim", "schedule"),
        None if recipe.reward is None else build_reward(recipe.reward), build_measures(recipe.measure),
    )  # fmt: skip


def build_reward(spec: Any) -> Reward:
    """One reward, or the weighted sum of a list."""
    if not isinstance(spec, list | tuple):
        return build_component(spec, "reward", "reward")
    members, weights = [], []
    for i, one in enumerate(spec):
        plain, weight = _popped(one, f"reward[{i}]", "weight")
        members.append(build_component(plain, "reward", f"reward[{i}]"))
        weights.append(1.0 if weight is None else float(weight))
    return find("weighted", "reward").load()(rewards=tuple(members), weights=tuple(weights))


def fit_kind(objective: Objective, rows: Rows, steps: Sequence[Any] | None = None) -> str:
    """The batch kind this objective makes of these rows after the steps. Raises Refused saying what it has and needs."""
    if isinstance(objective, Sum):
        choosy = [one for one in objective.members if one.needs.batch]
        kinds = {fit_kind(one, rows, steps) for one in choosy or objective.members}
        if len(kinds) > 1:
            raise Refused(sentence(objective.name, "objectives that read the same kind of batch", " and ".join(sorted(kinds)),
                                   "Leave one of them out"))  # fmt: skip
        return kinds.pop()
    wanted, kind = objective.needs.batch, kind_after(rows, steps)
    if not wanted or kind in wanted:
        return kind
    if "group" in wanted and kind in ("prompts", "text"):
        return "group"
    came = f"{kind} data in {rows.path}"
    raise Refused(sentence(objective.name, f"{' or '.join(wanted)} data", came, advice(wanted[0], rows)))


def select_rows(
    rows: Rows, steps: Sequence[Any], seed: int, tokenizer: Any, embed: Any = None, untuned: Any = None
) -> list[str]:
    """Apply the selectors and builders in order; says how many rows each kept. untuned: the model that scores rows, if asked."""
    notes = []
    ctx = DataContext(
        seed=seed, embed=embed, count_tokens=lambda t: len(tokenizer(t, add_special_tokens=False)["input_ids"]),
        score=None if untuned is None else untuned.score, gradients=None if untuned is None else untuned.gradients,
    )  # fmt: skip
    for i, spec in enumerate(steps):
        choose = build_component(spec, "data", f"data.steps[{i}]")
        if isinstance(choose, Build):
            built = choose(rows.rows, ctx)
            rows.become(built.rows, built.source, choose.makes)
            notes += built.notes
            continue
        if not isinstance(choose, Select):
            raise ConfigError(
                sentence(f"data.steps[{i}]", "a selector or builder", choose.id, "Make rows from Python first")
            )
        choice = choose(rows.rows, ctx)
        notes.append(f"{choose.id} kept {len(choice.index)} of {len(rows.rows)} rows: {choice.reason}")
        rows.keep(choice.index.tolist())
    return notes


def select(recipe: Recipe, rows: Rows, tokenizer: Any) -> list[str]:
    """Apply the recipe's own selectors, if it has any."""
    if not recipe.data.steps:
        return []
    from luthier.recipes.scoring import Untuned

    return select_rows(rows, recipe.data.steps, recipe.seed, tokenizer, embedder(recipe), Untuned(recipe, tokenizer))


def attach_all(model: torch.nn.Module, adapt: Sequence[tuple[Adaptation, Sites]], seed: int,
               beside: Mapping[str, torch.nn.Module] | None = None) -> Any:  # fmt: skip
    """Attach one adaptation, or several on disjoint sites as one handle. beside: modules that the objective brings."""
    handles = [one.attach(model, sites, seed) for one, sites in adapt]
    if beside:
        from luthier.adapt.beside import BesideHandle

        handles.append(BesideHandle(model, beside))
    if len(handles) == 1:
        return handles[0]
    from luthier.adapt.attach import Several

    return Several(handles)


def prepare(
    recipe: Recipe, out: Path | None = None, on_event: Event | None = None, accelerator: Any = None
) -> Prepared:
    """Load, encode, attach: everything up to the first step. Raises with the error form; loses nothing."""
    from luthier.recipes.kits import kind_of

    return kind_of(recipe).prepare(recipe, out, on_event, accelerator)


def prepare_text(recipe: Recipe, out: Path | None, on_event: Event | None, accelerator: Any) -> Prepared:
    """A recipe of a language model, made ready; its kit is still to be put in."""
    from luthier.models.loading import load_causal_lm, load_config, load_tokenizer, with_pad
    from luthier.recipes.helpers import load_helpers
    from luthier.recipes.text import encode_training, renderer

    parts = build_parts(recipe)
    splits = load_splits(recipe.data, recipe.seed)
    kind = "group" if samples(recipe.loop) else fit_kind(parts.objective, splits.train, recipe.data.steps)
    source = model_source(recipe.model)
    load_config(source)
    tokenizer = with_pad(load_tokenizer(recipe.tokenizer or source))
    notes = [splits.train.statement, *splits.train.notes]
    notes += select(recipe, splits.train, tokenizer)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    model = load_causal_lm(source, recipe.dtype)
    if recipe.train.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    encoded = encode_training(splits.train, kind, tokenizer, recipe.data, model.config)
    notes += encoded.report.lines() if hasattr(encoded.report, "lines") else [str(encoded.report)]
    mixture, told = mixture_of(recipe, splits.train, encoded, kind)
    notes += told
    attached = attach_all(model, parts.adapt, recipe.seed)
    if accelerator is not None:
        model.to(accelerator.device)
    view = LanguageView(LanguageModule(model))
    policy = Policy(view, attached, _teacher(recipe, accelerator), tokenizer)
    text = renderer(tokenizer, recipe.data, model.config)
    notes += _fit_test(splits, parts, text)
    feed = _feed(recipe, parts, kind, encoded, policy, splits, text, mixture)
    identity = f"{recipe.identity}:{splits.train.fingerprint}"
    handles: dict[str, Any] = {"tokenizer": tokenizer}
    if (kept := retained(recipe.data, recipe.seed)) is not None:
        handles["retain"] = _retained(recipe, kept, policy, model.config)
        notes.append(f"retained: {kept.statement}")
        identity += f":{kept.fingerprint}"
    job = Job(policy, parts.objective, feed, recipe.train, parts.optimiser, parts.schedule, parts.hooks, recipe.seed, out,
              identity, accelerator, on_event, handles)  # fmt: skip
    helpers = load_helpers(recipe, model, tokenizer, attached.disabled)
    return Prepared(recipe, parts, splits, encoded, policy, feed, job, notes, helpers=helpers)


def _retained(recipe: Recipe, rows: Rows, policy: Policy, config: Any) -> Any:
    """Old rows for hooks, encoded as the new ones are."""
    from luthier.recipes.text import encode_training
    from luthier.train.retain import Retained

    made = encode_training(rows, "text", policy.tokenizer, recipe.data, config)
    width = packing_of(recipe, policy.view.module.packs)
    return Retained(policy, RowFeed(made.examples, "text", made.parts, int(policy.tokenizer.pad_token_id),
                                    recipe.train.batch, recipe.seed, width=width, hidden=hidden_of(config)))  # fmt: skip


def _fit_test(splits: Splits, parts: Parts, text: Any) -> list[str]:
    """Leave out test rows that the recipe's own limits drop; says how many."""
    if not parts.measures or not splits.test:
        return []
    kept = text.fitting(splits.test)
    lost = len(splits.test) - len(kept)
    splits.test = [splits.test[i] for i in kept]
    return (
        [f"{lost} of {lost + len(kept)} test rows are left out: their answer does not fit data.max_length"]
        if lost
        else []
    )


def _teacher(recipe: Recipe, accelerator: Any) -> Any:
    if recipe.teacher is None:
        return None
    from luthier.models.loading import load_causal_lm

    model = load_causal_lm(recipe.teacher, recipe.dtype)
    if accelerator is not None:
        model.to(accelerator.device)
    return LanguageView(LanguageModule(model))


def _feed(recipe: Recipe, parts: Parts, kind: str, encoded: Any, policy: Policy, splits: Splits, text: Any,
          mixture: Mixture | None) -> Feed:  # fmt: skip
    train, pad_id = recipe.train, int(policy.tokenizer.pad_token_id)
    rows = [splits.train.rows[e[0].row] for e in encoded.examples]
    if kind == "group":
        from luthier.recipes.text import as_prompt
        from luthier.train.rollout import RolloutFeed

        if parts.reward is None:
            raise Refused("a policy-gradient objective requires `reward`; the recipe names none. Add `reward: exact`.")
        if recipe.loop is not None:
            return _procedure(recipe, parts, encoded, [as_prompt(r) for r in rows], policy, text, pad_id)
        if train.batch % recipe.rollout.group:
            raise Refused(sentence("train.batch", f"a multiple of rollout.group ({recipe.rollout.group})", str(train.batch),
                                   "Change one of them"))  # fmt: skip
        whole = "group" in parts.objective.needs.signals
        if whole and recipe.rollout.group < 2:
            raise Refused(
                sentence(parts.objective.name, "at least two completions per prompt", "rollout.group: 1", "Raise it")
            )
        rows = [as_prompt(r) for r in rows]
        return RolloutFeed(policy, [list(e[0].ids) for e in encoded.examples], rows, parts.reward,
                           _advantage(parts.objective), recipe.rollout.group, train.batch, recipe.seed,
                           recipe.rollout.max_new, recipe.rollout.temperature, train.micro, recipe.rollout.reuse, text.stop,
                           pad_id, whole=whole, mixture=mixture)  # fmt: skip
    width = packing_of(recipe, policy.view.module.packs)
    columns = {k: torch.tensor(v) for k, v in encoded.columns.items()}
    feed = RowFeed(encoded.examples, kind, encoded.parts, pad_id, train.batch, recipe.seed, train.micro, width, columns,
                   meta=rows, mixture=mixture, hidden=hidden_of(policy.view.module.model.config))  # fmt: skip
    feed.tables = _taught(recipe, parts.objective, policy, feed)
    return feed if recipe.loop is None else _over_rows(recipe, kind, policy, feed)


def _over_rows(recipe: Recipe, kind: str, policy: Policy, pool: RowFeed) -> Feed:
    """The batches of a procedure that learns from the rows' own answers."""
    from luthier.loops._parts import RowParts

    procedure = build_component(recipe.loop, "loops", "loop")
    if procedure.gives != kind:
        do = f"Use rows of {procedure.gives}, or leave the loop out"
        raise Refused(sentence(f"loop {procedure.name}", f"{procedure.gives} data", f"{kind} data", do))
    return procedure.feed(RowParts(policy, pool, recipe.train.total_steps))


def _taught(recipe: Recipe, objective: Objective, policy: Policy, feed: RowFeed) -> dict[str, list[torch.Tensor]]:
    """The teacher's most probable words at each trained token, from its file or by reading the rows once; {} if not asked."""
    from luthier.models.topk import TopK, teacher_topk

    asked = words_asked(objective)
    if not asked:
        return {}
    if recipe.data.topk is not None:
        found = TopK.load(Path(recipe.data.topk))
    elif isinstance(policy.teacher, LanguageView):
        device = next(policy.teacher.module.parameters()).device
        found = teacher_topk(policy.teacher, (feed.collate([r]).to(device) for r in range(len(feed.examples))), asked)
        policy.forwards["teacher"] = policy.forwards.get("teacher", 0) + len(feed.examples)
    else:
        raise Refused(sentence(objective.name, "a teacher's words at each token", "neither a teacher nor a file",
                               "Name a `teacher`, or a file of luthier.models.topk in data.topk"))  # fmt: skip
    return found.rows(feed.examples, asked)


def words_asked(objective: Objective) -> int:
    """How many of a teacher's words at each token an objective reads; 0 for none."""
    members = objective.members if isinstance(objective, Sum) else (objective,)
    return max(
        getattr(getattr(one, "inner", one), "top", 1) if "topk_id" in one.needs.signals else 0 for one in members
    )


def packing_of(recipe: Recipe, packs: bool) -> int | None:
    """The feed's packing width. Raises Refused where packing is asked of a model that mixes packed sequences."""
    asked = recipe.train.packing
    if asked == "auto":
        return None if packs else 0
    if asked and not packs:
        raise Refused(sentence("train.packing", "a model that keeps packed sequences apart", "one that does not",
                               "Set train.packing to 0"))  # fmt: skip
    return asked


def _procedure(recipe: Recipe, parts: Parts, encoded: Any, rows: Any, policy: Policy, text: Any, pad_id: int) -> Feed:
    from luthier.loops._parts import FeedParts

    wanted, procedure = parts.objective.needs.batch, build_component(recipe.loop, "loops", "loop")
    if wanted and procedure.gives not in wanted:
        do = "Use nll or dft" if procedure.gives == "text" else "Use dpo or another pair loss"
        raise Refused(
            sentence(f"loop {procedure.name}", f"an objective for {procedure.gives} data", parts.objective.name, do)
        )
    assert parts.reward is not None
    sampling = Sampling(recipe.rollout.max_new, recipe.rollout.temperature, text.stop)
    handed = FeedParts(policy, [list(e[0].ids) for e in encoded.examples], rows, parts.reward, sampling, recipe.train.batch,
                       recipe.train.micro, recipe.seed, pad_id)  # fmt: skip
    return procedure.feed(handed)


def _advantage(objective: Objective) -> Any:
    members = objective.members if isinstance(objective, Sum) else (objective,)
    for one in members:
        own = getattr(getattr(one, "inner", one), "advantage", None)
        if own is not None:
            return own
    if "advantage" not in objective.needs.signals:
        return lambda reward, group: reward
    raise Refused(f"{objective.name} requires an objective that turns rewards into advantages; got none. Use grpo.")


@functools.cache
def _loaded_embedder(name: str) -> Any:
    from luthier.models.embedder import load_embedder

    return load_embedder(name)


def embedder(recipe: Recipe) -> Any:
    """Texts -> (n, d) vectors by the recipe's embedder (a sentence-transformers folder or name, or "minilm"), None without."""
    return _loaded_embedder(recipe.embedder) if recipe.embedder else None


def needs_reference(objective: Objective) -> list[str]:
    """Plain names of the signals asked of the frozen reference."""
    return [plain for prefix, plain in map(split, base_signals(objective.needs.signals)) if prefix == "ref_"]


def cache_reference(prepared: Prepared) -> int:
    """Compute the frozen reference's log-probs once where rows come more than once, or where switching off costs copies.

    Returns the number of forward passes made (0: they are computed as needed).
    """
    feed, recipe = prepared.feed, prepared.recipe
    wants = needs_reference(prepared.parts.objective)
    if wants != ["token_logp"] or not isinstance(feed, RowFeed):
        return 0
    visited = recipe.train.total_steps(len(feed)) * recipe.train.batch
    cheap = all(getattr(a, "role", "") != "choose" for a, _ in prepared.parts.adapt)
    if visited <= len(feed) and cheap:
        return 0
    size = recipe.train.micro or recipe.train.batch
    order = sorted(range(len(feed.examples)), key=lambda r: (sum(len(p.ids) for p in feed.examples[r]), r))
    held: dict[int, tuple[torch.Tensor, ...]] = {}
    device = next(prepared.policy.view.wrapped.parameters()).device
    passes = 0
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        batch = feed.collate(rows).to(device)
        got = prepared.policy.reference_signals(batch, ["token_logp"])["token_logp"]
        passes += 1
        for i, row in enumerate(rows):
            held[row] = tuple(_trained(got[p][i], feed.examples[row][p]) for p in range(len(feed.parts)))
    prepared.policy.forwards["reference"] = prepared.policy.forwards.get("reference", 0) + passes
    feed.reference = [held[r] for r in range(len(feed.examples))]
    return passes


def asks_for_base(prepared: Prepared) -> bool:
    """Whether anything from the first step on may ask for the model as it was before training."""
    recipe, parts = prepared.recipe, prepared.parts
    cached = getattr(prepared.feed, "reference", None) is not None
    named = [*parts.objective.needs.handles, *(h for hook in parts.hooks for h in hook.needs.handles)]
    signals = [w for hook in parts.hooks for w in getattr(hook, "wants", ())]
    listens = recipe.measure or recipe.loop is not None or recipe.decode or recipe.sampling.guides
    own = bool(needs_reference(parts.objective)) and not cached
    return bool(listens) or own or "reference" in named or any(split(s)[0] == "ref_" for s in signals)


def _trained(values: torch.Tensor, tokens: Any) -> torch.Tensor:
    own = torch.tensor(tokens.mask, dtype=torch.bool)
    own[0] = False
    return values[: len(own)].cpu()[own]
