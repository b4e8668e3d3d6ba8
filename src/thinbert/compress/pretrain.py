"""Masked-language-model pre-training: documents to pairs of segments, masked anew each time they are read."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from thinbert.compress import distill
from thinbert.compress.data import Batch, Features, collect, collect_in
from thinbert.compress.encoder import Encoder, Trace
from thinbert.compress.objectives import TorchTeacher, apart
from thinbert.compress.recipe import Distillation
from thinbert.compress.text import Documents
from thinbert.compress.train import Objective
from thinbert.model.tokenizer import Tokenizer

MASKING = 0.15  # share of tokens that are to be guessed; of those
AS_MASK, AS_RANDOM = 0.8, 0.1  # shown as [MASK], as another token; the rest as they are (Devlin et al. 2019)
SHORT = 0.1  # share of pairs that are given a random shorter length
OTHER = 0.5  # share whose second segment is from another document


def pairs(
    documents: Documents,
    numbers: Sequence[int],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    seed: int,
    folder: Path | None,
) -> Features:
    """Pairs of segments [CLS] a [SEP] b [SEP] of whole sentences of some of the documents, labelled `other` where b is
    from another of them.

    As BERT's pre-training made them: half of the time b is what follows a.

    Args:
        folder: where they are kept (see data.collect_in), and taken from if they are there.
    """
    mixed = random.Random(seed)
    room = max_length - 3

    def length() -> int:
        return mixed.randint(2, room) if mixed.random() < SHORT else room

    def made() -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Mapping[str, int]]]:
        for place, document in enumerate(numbers):
            yield from _of_document(place, [documents.sentence(document, i) for i in range(documents.count(document))])

    def _of_document(
        place: int, document: list[list[int]]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Mapping[str, int]]]:
        target = length()
        chunk: list[list[int]] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if sum(map(len, chunk)) >= target or i == len(document) - 1:
                cut = mixed.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a = [t for s in chunk[:cut] for t in s]
                other = len(numbers) > 1 and (len(chunk) == 1 or mixed.random() < OTHER)
                if other:
                    b = _from_elsewhere(place, target - len(a))
                    i -= len(chunk) - cut  # what was not used is read again
                else:
                    b = [t for s in chunk[cut:] for t in s]
                while len(a) + len(b) > room:  # from the front or the back of the longer one, at random
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if mixed.random() < 0.5 else -1)
                ids = [tokenizer.cls, *a, tokenizer.sep, *b, *([tokenizer.sep] if b else [])]
                types = [0] * (len(a) + 2) + [1] * (len(ids) - len(a) - 2)
                yield np.array(ids, np.int32), np.array(types, np.int32), {"other": int(other)}
                chunk = []
                target = length()
            i += 1

    def _from_elsewhere(place: int, wanted: int) -> list[int]:
        document = numbers[(place + mixed.randrange(1, len(numbers))) % len(numbers)]
        found: list[int] = []
        for i in range(mixed.randrange(documents.count(document)), documents.count(document)):
            found += documents.sentence(document, i)
            if len(found) >= wanted:
                break
        return found

    return collect(made()) if folder is None else collect_in(folder, made)


class PretrainLoss(Objective):
    """Guessing masked tokens, telling whether the second segment follows, and following a teacher: its logits at the
    masked places, its hidden states, its attention.

    The teacher is a torch encoder that sees the same masked text. Unless its logits are wanted everywhere, they are
    followed at the masked places alone: a head of V classes on every token costs more than the encoder.
    """

    def __init__(
        self,
        model: Encoder,
        tokenizer: Tokenizer,
        features: Features,
        terms: Distillation,
        teacher: TorchTeacher | None = None,
        project: nn.Module | None = None,
    ) -> None:
        super().__init__(model)
        self.project = project
        self._mask, self._special = tokenizer.mask, (tokenizer.cls, tokenizer.sep)
        self._terms = terms
        self._teacher = teacher
        # tokens of a sequence on average: what a sum over a sequence is divided by, the same in every batch
        self._tokens = float(features.lengths.mean())
        self._masked = max(1.0, MASKING * self._tokens)

    def forward(self, given: Batch) -> Tensor:
        ids, chosen = self.hide(given)
        trace = Trace(self._terms.attention > 0) if self._teacher is not None and self._terms.follows_states else None
        hidden = self.model(ids, given.types, given.lengths, trace=trace)
        everywhere = self._terms.everywhere and self._teacher is not None
        read = given.mask if everywhere else chosen
        logits = self.model.mlm_logits(hidden[read]).float()
        total = torch.zeros((), device=logits.device)
        if self._terms.hard:
            guesses = logits[chosen[read]] if everywhere else logits
            guessed = F.cross_entropy(guesses, given.ids[chosen], reduction="sum") / self._masked
            follows = F.cross_entropy(self.model.nsp_logits(hidden).float(), given.labels["other"], reduction="sum")
            total = total + self._terms.hard * (guessed + follows)
        if self._teacher is not None:
            seen, theirs = self._teacher.read(ids, given)
            if self._terms.logits:
                teacher, T = self._teacher.model, self._terms.temperature
                with torch.no_grad():
                    wanted, other = teacher.mlm_logits(seen[read]).float(), teacher.nsp_logits(seen).float()
                follow = distill.soft_logits(logits, wanted, T).sum() / (self._tokens if everywhere else self._masked)
                follow = follow + distill.soft_logits(self.model.nsp_logits(hidden), other, T).sum()
                total = total + self._terms.logits * follow
            if trace is not None:
                total = total + apart(self._terms, trace, theirs, given.mask, self.project)
        return total

    def hide(self, given: Batch) -> tuple[Tensor, Tensor]:
        """Ids with some tokens hidden, and which [B, L]: MASKING of each sequence's tokens, never [CLS] or [SEP]."""
        allowed = given.mask
        for special in self._special:
            allowed = allowed & (given.ids != special)
        count = (allowed.sum(1) * MASKING).round().clamp(min=1)
        noise = torch.rand(given.ids.shape, device=given.ids.device).masked_fill(~allowed, 2.0)
        rank = noise.argsort(1).argsort(1)
        chosen = (rank < count[:, None]) & allowed
        dice = torch.rand(given.ids.shape, device=given.ids.device)
        ids = given.ids.masked_fill(chosen & (dice < AS_MASK), self._mask)
        random_ids = torch.randint_like(given.ids, self.model.config.vocabulary)
        as_random = chosen & (dice >= AS_MASK) & (dice < AS_MASK + AS_RANDOM)
        return torch.where(as_random, random_ids, ids), chosen


def held_out_loss(model: Encoder, objective: PretrainLoss, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean loss and accuracy of guessing over batches masked the same way each time."""
    model.eval()
    loss = right = count = 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for given in (b.to(next(model.parameters()).device) for b in batches):
            ids, chosen = objective.hide(given)
            logits = model.mlm_logits(model(ids, given.types, given.lengths)[chosen]).float()
            loss += float(F.cross_entropy(logits, given.ids[chosen], reduction="sum"))
            right += float((logits.argmax(-1) == given.ids[chosen]).sum())
            count += int(chosen.sum())
    model.train()
    return {"mlm_loss": round(loss / count, 4), "mlm_accuracy": round(100 * right / count, 2)}
