"""Preference training on the model's own samples: sample, score, make pairs, train on them, and again.

Papers: arXiv 2411.04109 (with vote_pairs), arXiv 2501.18101 (with divpo).   Formula: in round t, K
samples a prompt of policy t, pairs by a builder of data/pairs, `steps` steps of a pair loss whose reference is policy t.
Takes: prompts, a reward and a builder.   Gives: preference batches for any pair loss (dpo, scpo, copg, orpo, ...).
Choose it when: answers can be scored and a pair loss is wanted on fresh samples.
Rather not when: pairs of people are at hand (dpo on them), or all samples of a prompt score alike.
Relatives: raft (imitates the best), grpo (uses all samples).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Build, Built, Card, DataContext, Needs, Procedure, Row, component
from luthier.core.errors import DataError
from luthier.loops._parts import FeedParts
from luthier.models.collate import pad
from luthier.train.feed import Feed, order
from luthier.train.rollout import Groups, Sampled, sample_groups

CARD = Card(
    name="Iterated preference training",
    source="arXiv 2411.04109",
    needs=Needs(batch=("prompts", "text"), handles=("reward",)),
    cost="K samples of each prompt a round and one forward over them; then supervised steps on pairs",
    limits=(
        "the tokens of a pair are those that were sampled",
        "refresh: at the first step of a round the policy equals the reference; without it the reference is the model before "
        "training",
    ),
    differs=(
        "one run: the schedule and the state of the optimiser go on over the rounds",
        "a round whose samples give no pair goes on with the pairs of the round before; the figure `pairs` says 0",
    ),
    use_when="answers can be scored, and pair losses are wanted on samples of the model as it is",
    avoid_when="all samples of a prompt score alike",
    relatives=("loops.raft", "objectives.preference.dpo", "data.pairs.divpo", "data.pairs.vote_pairs"),
    mechanism="rejection sampling",
    tags=("stateful",),
)
PARTS = ("chosen", "rejected")


def scored_rows(
    rows: Sequence[Row], owners: Sequence[int], texts: Sequence[str], reward: Tensor, group: Tensor
) -> list[Row]:
    """One row per prompt with `responses` and `scores`, in the order of sampling; other columns stay."""
    out: list[dict[str, Any]] = []
    for owner, text, score, g in zip(owners, texts, reward.tolist(), group.tolist(), strict=True):
        if g == len(out):
            out.append({**rows[owner], "responses": [], "scores": []})
        out[g]["responses"].append(text)
        out[g]["scores"].append(score)
    return list(out)


def numbers_of(rows: Sequence[Row]) -> dict[str, list[float]]:
    """The columns weight, gap and consistency that all rows bring."""
    return {k: [float(r[k]) for r in rows] for k in ("weight", "gap", "consistency") if all(k in r for r in rows)}


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class IteratedPairs(Procedure):
    """builder: how samples become pairs; samples: K per prompt; prompts: how many a round samples; steps: steps of a round.

    refresh: the reference is the policy at the beginning of the round, else the model before training.
    """

    gives: ClassVar[str] = "preference"
    builder: Build
    samples: Annotated[int, Gt(1)] = 8
    prompts: Annotated[int, Gt(0)] = 64
    steps: Annotated[int, Gt(0)] = 10
    refresh: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.builder, Build):
            raise ValueError(
                f"iterated_pairs requires a builder of data/pairs; got {self.builder!r}. Write builder: divpo."
            )

    def feed(self, parts: FeedParts) -> PairFeed:
        """Batches of pairs, made anew every `steps` steps."""
        return PairFeed(self, parts)


@dataclass
class PairFeed(Feed):
    """Preference batches; a round's pairs are its data set. figures: of the last round, for the log.

    pairs: sequences of chosen and rejected; owners: their prompts; columns: the builder's numbers; reference: log-probs of
    each pair's tokens under the round's first policy, where it refreshes.
    """

    loop: IteratedPairs
    parts: FeedParts
    figures: dict[str, float] = field(default_factory=dict)
    pairs: list[tuple[Sampled, Sampled]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    reference: list[tuple[list[float], list[float]]] = field(default_factory=list)
    turn: int = -1

    def __len__(self) -> int:
        return len(self.parts.prompts)

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Micro-batches of this step; a new round begins every `steps` steps."""
        turn, inside = divmod(step, self.loop.steps)
        if turn != self.turn:
            self._round(turn, rank, world)
        p, n = self.parts, len(self.pairs)
        rows = order(p.seed, turn * 100_003 + inside, min(-(-p.batch // world), n), n)
        cut = p.micro or len(rows)
        return [self._collate(rows[at : at + cut]) for at in range(0, len(rows), cut)]

    def _round(self, turn: int, rank: int, world: int) -> None:
        p = self.parts
        chosen = order(p.seed, turn, min(self.loop.prompts, len(p.prompts)), len(p.prompts))[rank::world]
        made = sample_groups(p.policy, p.prompts, p.rows, chosen, self.loop.samples, p.reward, p.sampling, p.seed, turn,
                             rank if world > 1 else None)  # fmt: skip
        self.turn, self.figures = turn, {**made.figures, "pairs": 0.0}
        texts = [self._text(s) for s in made.sequences]
        rows = scored_rows(p.rows, made.owners, texts, made.reward, made.group)
        logp = self._token_logp(made.sequences)
        try:
            built = self.loop.builder(rows, self._context(rows, made, logp))
        except DataError:
            if not self.pairs:
                raise
            return
        self._keep(rows, built, made, logp)
        self.figures["pairs"] = float(len(self.pairs))

    def _keep(self, rows: Sequence[Row], built: Built, made: Groups, logp: list[list[float]]) -> None:
        k = self.loop.samples
        index = [tuple(g * k + rows[g]["responses"].index(row[side]) for side in PARTS)
                 for row, g in zip(built.rows, built.source, strict=True)]  # fmt: skip
        self.pairs = [(made.sequences[a], made.sequences[b]) for a, b in index]
        self.owners = [made.owners[a] for a, _ in index]
        self.columns = numbers_of(built.rows)
        self.reference = [(logp[a], logp[b]) for a, b in index] if self.loop.refresh else []

    def _text(self, sequence: Sampled) -> str:
        made = [t for t, m in zip(sequence.ids, sequence.mask, strict=True) if m]
        ended = bool(made) and made[-1] in self.parts.sampling.stop
        return self.parts.policy.tokenizer.decode(made[:-1] if ended else made, skip_special_tokens=True)

    def _context(self, rows: Sequence[Row], made: Groups, logp: list[list[float]]) -> DataContext:
        """Seed, token counter, and the mean log-prob of each sampled answer under the policy that drew it."""
        tokenizer = self.parts.policy.tokenizer
        flat = [(repr(r.get("prompt")), t) for r in rows for t in r["responses"]]
        means = [sum(x) / max(1, sum(s.mask)) for x, s in zip(logp, made.sequences, strict=True)]
        known = dict(zip(flat, means, strict=True))
        return DataContext(
            seed=self.parts.seed, count_tokens=lambda t: len(tokenizer(t, add_special_tokens=False)["input_ids"]),
            score=lambda asked: torch.tensor([known[repr(r.get("prompt")), str(r["response"])] for r in asked]))  # fmt: skip

    @torch.no_grad()
    def _token_logp(self, sequences: Sequence[Sampled]) -> list[list[float]]:
        """Log-probs of every token of each sequence under the policy as it is, 0 where it was not sampled."""
        module, out = self.parts.policy.view.wrapped, list[list[float]]()
        device, was = next(module.parameters()).device, module.training
        module.eval()
        size = self.parts.micro or self.parts.batch
        for at in range(0, len(sequences), size):
            some = sequences[at : at + size]
            batch = Batch("text", pad(some, self.parts.pad_id)).to(device)
            got = self.parts.policy.signals(batch, ("token_logp",), "old")["token_logp"].float().cpu()
            out += [row[: len(s.ids)].tolist() for row, s in zip(got, some, strict=True)]
        module.train(was)
        return out

    def _collate(self, rows: list[int]) -> Batch:
        sequences = [self.pairs[i][side] for side in (0, 1) for i in rows]
        inputs = pad(sequences, self.parts.pad_id)
        if self.reference:
            inputs["ref_token_logp"] = torch.zeros(inputs["input_ids"].shape)
            for at, values in enumerate(self.reference[i][side] for side in (0, 1) for i in rows):
                inputs["ref_token_logp"][at, : len(values)] = torch.tensor(values)
        columns = {k: torch.tensor([v[i] for i in rows]) for k, v in self.columns.items()}
        owners = tuple(self.owners[i] for i in rows)
        return Batch("preference", inputs, PARTS, columns, owners, [self.parts.rows[o] for o in owners])

    def state(self) -> dict[str, Any]:
        """The round in use, so that a resumed run goes on with it."""
        return {"turn": self.turn, "pairs": [[[list(s.ids), list(s.mask)] for s in pair] for pair in self.pairs],
                "owners": list(self.owners), "columns": dict(self.columns), "figures": dict(self.figures),
                "reference": [list(pair) for pair in self.reference]}  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from `state`."""
        self.turn, self.owners, self.figures = int(state["turn"]), list(state["owners"]), dict(state["figures"])
        self.pairs = [(Sampled(*map(tuple, a)), Sampled(*map(tuple, b))) for a, b in state["pairs"]]
        self.columns = {k: list(v) for k, v in state["columns"].items()}
        self.reference = [(list(a), list(b)) for a, b in state["reference"]]
