"""A teacher's most probable words at every trained token, computed once and kept in a file instead of the teacher.

File (safetensors), N trained tokens of all rows one after another: `id` (N, k) int32 words, `logp` (N, k) float16 their
log-probs in nats, most probable first; `target` (N,) int32 the trained tokens themselves and `count` (rows,) int64 how many
each row has, by which a file that belongs to other rows or another tokenizer is recognised. 6 k + 4 bytes a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.errors import DataError, sentence
from luthier.core.files import read_tensors, write_tensors
from luthier.models.collate import Tokens
from luthier.models.language import LanguageView


@dataclass(frozen=True)
class TopK:
    """id, logp (N, k); target (N,); count (rows,): see the module."""

    id: Tensor
    logp: Tensor
    target: Tensor
    count: Tensor

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {
            "id": self.id.int(),
            "logp": self.logp.half(),
            "target": self.target.int(),
            "count": self.count.long(),
        }
        write_tensors(path, tensors, {"luthier_topk": "1"})

    @classmethod
    def load(cls, path: Path) -> TopK:
        """Read such a file. Raises DataError for a file of another kind, CheckpointError for a damaged one."""
        found = read_tensors(path)
        if missing := sorted({"id", "logp", "target", "count"} - set(found)):
            raise DataError(sentence(str(path), "a teacher's top words (luthier.models.topk)", f"a file without {missing[0]}",
                                     "Make it with teacher_topk(...).save(path)"))  # fmt: skip
        return cls(found["id"].long(), found["logp"].float(), found["target"].long(), found["count"])

    def rows(self, examples: Sequence[tuple[Tokens, ...]], k: int) -> dict[str, list[Tensor]]:
        """Tables `topk_id` and `topk_logp` by row, (trained tokens, k) each, for a feed of these examples.

        Raises DataError where fewer words are stored, or where the rows are others than those that the teacher read.
        """
        if self.id.shape[1] < k:
            raise DataError(sentence("the teacher's top words", f"at least {k} per token", f"{self.id.shape[1]}",
                                     "Store more, or lower `top`"))  # fmt: skip
        if len(examples) != len(self.count):
            raise DataError(sentence("the teacher's top words", f"the {len(examples)} rows of training",
                                     f"those of {len(self.count)} rows", "Store them anew for these rows"))  # fmt: skip
        starts = self.count.cumsum(0) - self.count
        for row, example in enumerate(examples):
            own = torch.tensor(trained_tokens(example[0]))
            start, n = int(starts[row]), int(self.count[row])
            if len(own) != n or bool((own != self.target[start : start + n]).any()):
                raise DataError(sentence("the teacher's top words", "the tokens of training", f"others in row {row + 1}",
                                         "Store them anew for these rows and this tokenizer"))  # fmt: skip
        sizes = self.count.tolist()
        return {"topk_id": list(self.id[:, :k].split(sizes)), "topk_logp": list(self.logp[:, :k].split(sizes))}


def trained_tokens(sequence: Tokens) -> list[int]:
    """The trained tokens of a sequence, in order; a first token is never trained."""
    return [t for t, m in list(zip(sequence.ids, sequence.mask, strict=True))[1:] if m]


@torch.no_grad()
def teacher_topk(view: LanguageView, batches: Iterable[Batch], k: int) -> TopK:
    """The k most probable words at each trained token of text batches, in their order, and their log-probs.

    view: the teacher as the engine sees it (`LanguageView(LanguageModule(model))`); batches: `feed.collate([row])` or more
    rows at a time. Raises DataError where the vocabulary has fewer than k words.
    """
    ids, logps, targets, counts = [], [], [], []
    was = view.module.training
    view.module.eval()
    for batch in batches:
        got = {name: values[0] for name, values in view.signals(batch, ["logits", "token_mask", "token_id"]).items()}
        at = got["token_mask"].nonzero(as_tuple=True)
        log_p = got["logits"][at].log_softmax(-1)
        if log_p.shape[-1] < k:
            raise DataError(sentence("top words", f"a vocabulary of at least {k}", str(log_p.shape[-1]), "Lower k"))
        top = log_p.topk(k, -1)
        ids.append(top.indices.cpu())
        logps.append(top.values.cpu())
        targets.append(got["token_id"][at].cpu())
        counts.append(got["token_mask"].ne(0).sum(-1).cpu())
    view.module.train(was)
    return TopK(torch.cat(ids), torch.cat(logps), torch.cat(targets), torch.cat(counts))
