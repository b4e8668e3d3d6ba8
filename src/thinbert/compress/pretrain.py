"""Masked-language-model pre-training: plain text to pairs of segments, masked anew each time they are read."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from thinbert.compress import distill
from thinbert.compress.data import Batch, Features, collect
from thinbert.compress.encoder import Encoder, Trace
from thinbert.compress.objectives import Distillation, Follower
from thinbert.compress.train import Objective
from thinbert.model.tokenizer import Tokenizer
from thinbert.tasks.glue import sentences

MASKING = 0.15  # share of tokens that are to be guessed; of those
AS_MASK, AS_RANDOM = 0.8, 0.1  # shown as [MASK], as another token; the rest as they are (Devlin et al. 2019)
SHORT = 0.1  # share of pairs that are given a random shorter length
OTHER = 0.5  # share whose second segment is from another document


def documents(text: str) -> list[str]:
    """Documents stand apart by empty lines."""
    return [d for d in re.split(r"\n\s*\n", text) if d.strip()]


def pairs(texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int, seed: int) -> Features:
    """Pairs of segments [CLS] a [SEP] b [SEP] of whole sentences, labelled `other` where b is from another document.

    As BERT's pre-training made them: half of the time b is what follows a."""
    mixed = random.Random(seed)
    tokenised = [d for d in (_sentences(text, tokenizer) for text in texts) if d]

    def made() -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Mapping[str, int]]]:
        for number, document in enumerate(tokenised):
            yield from _of_document(number, document)

    def _of_document(
        number: int, document: list[list[int]]
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], Mapping[str, int]]]:
        room = max_length - 3
        target = mixed.randint(2, room) if mixed.random() < SHORT else room
        chunk: list[list[int]] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if sum(map(len, chunk)) >= target or i == len(document) - 1:
                cut = mixed.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a = [t for s in chunk[:cut] for t in s]
                other = len(chunk) == 1 or mixed.random() < OTHER
                if other and len(tokenised) > 1:
                    elsewhere = (number + mixed.randrange(1, len(tokenised))) % len(tokenised)
                    start = mixed.randrange(len(tokenised[elsewhere]))
                    b: list[int] = []
                    for sentence in tokenised[elsewhere][start:]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - cut  # what was not used is read again
                else:
                    other = False
                    b = [t for s in chunk[cut:] for t in s]
                while len(a) + len(b) > room:  # from the front or the back of the longer one, at random
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if mixed.random() < 0.5 else -1)
                ids = [tokenizer.cls, *a, tokenizer.sep, *b, *([tokenizer.sep] if b else [])]
                types = [0] * (len(a) + 2) + [1] * (len(ids) - len(a) - 2)
                yield np.array(ids, np.int32), np.array(types, np.int32), {"other": int(other)}
                chunk = []
                target = mixed.randint(2, room) if mixed.random() < SHORT else room
            i += 1

    return collect(made())


def _sentences(text: str, tokenizer: Tokenizer) -> list[list[int]]:
    found = []
    for line in text.split("\n"):
        for start, end in sentences(line):
            ids = tokenizer(line[start:end]).ids.tolist()
            if ids:
                found.append(ids)
    return found


class PretrainLoss(Objective):
    """Guessing masked tokens, telling whether the second segment follows, and following a teacher: its logits at the
    masked places, its hidden states, its attention.

    The teacher is a torch encoder that sees the same masked text. Its logits are followed at masked places alone: a
    head of V classes on every token costs more than the encoder (the published runs follow it everywhere).
    """

    def __init__(
        self,
        model: Encoder,
        tokenizer: Tokenizer,
        features: Features,
        terms: Distillation,
        states: Follower | None = None,
    ) -> None:
        super().__init__(model)
        self._mask, self._special = tokenizer.mask, (tokenizer.cls, tokenizer.sep)
        self._terms = terms
        self._states = states
        # masked tokens of a sequence on average: what the sum over a sequence is divided by, the same in every batch
        self._each = max(1.0, MASKING * float(features.lengths.mean()))

    def forward(self, given: Batch) -> Tensor:
        ids, chosen = self.hide(given)
        followed = self._states is not None and (self._terms.hidden or self._terms.attention)
        trace = Trace(self._terms.attention > 0) if followed else None
        hidden = self.model(ids, given.types, given.lengths, trace=trace)
        logits = self.model.mlm_logits(hidden[chosen]).float()
        total = torch.zeros((), device=logits.device)
        if self._terms.hard:
            guessed = F.cross_entropy(logits, given.ids[chosen], reduction="sum") / self._each
            follows = F.cross_entropy(self.model.nsp_logits(hidden).float(), given.labels["other"], reduction="sum")
            total = total + self._terms.hard * (guessed + follows)
        if self._states is not None:
            seen, theirs = self._states.read(ids, given)
            if self._terms.logits:
                teacher, T = self._states.teacher, self._terms.temperature
                with torch.no_grad():
                    wanted, other = teacher.mlm_logits(seen[chosen]).float(), teacher.nsp_logits(seen).float()
                follow = distill.soft_logits(logits, wanted, T).sum() / self._each
                follow = follow + distill.soft_logits(self.model.nsp_logits(hidden), other, T).sum()
                total = total + self._terms.logits * follow
            if trace is not None:
                total = total + self._states.loss(trace, theirs, given.mask)
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


def split(texts: Sequence[str], *, held_out: float = 0.05, seed: int = 0) -> tuple[list[str], list[str]]:
    """Documents to train on, and a share held out to measure with."""
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    held = set(order[: max(1, round(held_out * len(texts)))])
    return [t for n, t in enumerate(texts) if n not in held], [t for n, t in enumerate(texts) if n in held]


def held_out_loss(model: Encoder, objective: PretrainLoss, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean loss and accuracy of guessing over batches masked the same way each time."""
    model.eval()
    loss = right = count = 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for given in batches:
            ids, chosen = objective.hide(given)
            logits = model.mlm_logits(model(ids, given.types, given.lengths)[chosen]).float()
            loss += float(F.cross_entropy(logits, given.ids[chosen], reduction="sum"))
            right += float((logits.argmax(-1) == given.ids[chosen]).sum())
            count += int(chosen.sum())
    model.train()
    return {"mlm_loss": round(loss / count, 4), "mlm_accuracy": round(100 * right / count, 2)}
