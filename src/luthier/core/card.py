"""The card beside each technique: what it is, what it needs, where it departs from its paper.

A card is written as a literal `CARD = Card(...)` at module level, so that the catalogue reads it as text, without
importing the module (and torch with it). `Needs` inside the card is what the component asks of data and engine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a component asks for.

    batch: kinds of data it can work on, any of them will do ("text", "preference", "scored", "prompts", "group", ...);
    empty means any.
    signals: tensors that the engine computes for it ("token_logp", "ref_logp", "token_entropy", "logits", "hidden").
    handles: objects that the recipe hands in ("reference", "teacher", "sampler", "embed", "reward").
    adapt: tags that an adaptation of the recipe must carry ("factor_pair").
    """

    batch: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    adapt: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts of one technique, literal values only.

    papers: ids of the paper index that this component serves (empty for standard parts that no paper of the index owns).
    source: the publication, as "arXiv 2305.18290" or a reference; "standard" for textbook parts.
    limits: exact properties that tests hold it to; differs: departures from the paper, each with its reason.
    tags: contract checks that apply ("starts_at_base", "exact_merge", "stateful", "permutation", ...).
    """

    name: str
    source: str
    papers: tuple[int, ...] = ()
    equations: tuple[str, ...] = ()
    needs: Needs = Needs()
    cost: str
    limits: tuple[str, ...]
    differs: tuple[str, ...] = ()
    use_when: str
    avoid_when: str = ""
    relatives: tuple[str, ...] = ()
    mechanism: str = ""
    tags: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        """What is missing or malformed; an empty list means that the card is whole."""
        out = [
            f"card field {k!r} is empty" for k in ("name", "source", "cost", "use_when") if not getattr(self, k).strip()
        ]
        if not self.limits:
            out.append("card names no exact limit")
        if self.papers and self.source == "standard":
            out.append("card serves papers but gives no source")
        return out
