"""Losses of the tasks, each a sum over the examples of a batch, with or without a teacher."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from thinbert.compress import distill
from thinbert.compress.data import Batch
from thinbert.compress.encoder import Encoder, Trace
from thinbert.compress.recipe import Distillation
from thinbert.compress.train import Objective

Logits = Callable[[NDArray[np.int64]], list[NDArray[np.float16]]]  # example numbers -> what a teacher said to each
States = Callable[[Batch], Trace]  # what a teacher went through when it read a batch


class TorchTeacher:
    """A teacher that reads along.

    Args:
        attention: whether its scores are looked at.
    """

    def __init__(self, model: Encoder, *, attention: bool = False) -> None:
        self.model = model.eval().requires_grad_(False)
        self._attention = attention

    def read(self, ids: Tensor, given: Batch) -> tuple[Tensor, Trace]:
        """Its last hidden states, and what it went through."""
        trace = Trace(self._attention)
        with torch.no_grad():
            return self.model.to(ids.device)(ids, given.types, given.lengths, trace=trace), trace

    def __call__(self, given: Batch) -> Trace:
        return self.read(given.ids, given)[1]


class KeptStates:
    """The hidden states a teacher had, the layers that are followed alone.

    Args:
        known: example numbers -> [L, N + 1, D] of each.
    """

    def __init__(self, known: Callable[[NDArray[np.int64]], list[Tensor]]) -> None:
        self._known = known

    def __call__(self, given: Batch) -> Trace:
        rows = pad_sequence(self._known(given.numbers), batch_first=True)  # [B, L, N + 1, D]
        return Trace(attention=False, hidden=list(rows.to(given.ids.device).unbind(2)))


def apart(terms: Distillation, ours: Trace, theirs: Trace, mask: Tensor, project: nn.Module | None = None) -> Tensor:
    """What hidden states and attention scores cost that are not a teacher's, summed over the batch.

    Args:
        project: from our features to those of a teacher with another width, one for all layers (Jiao et al. 2020, W_h).
    """
    layers = distill.layer_map(len(ours.hidden) - 1, len(theirs.hidden) - 1)
    total = torch.zeros((), device=mask.device)
    if terms.hidden:
        states = ours.hidden if project is None else [project(h) for h in ours.hidden]
        cost = distill.hidden_states(states, [theirs.hidden[n] for n in layers], mask)
        total = total + terms.hidden * cost.sum()
    if terms.cosine:
        last = ours.hidden[-1] if project is None else project(ours.hidden[-1])
        total = total + terms.cosine * distill.last_states(last, theirs.hidden[-1], mask).sum()
    if terms.attention:
        cost = distill.attention_scores(ours.scores, [theirs.scores[n - 1] for n in layers[1:]], mask)
        total = total + terms.attention * cost.sum()
    return total


class TaskLoss(Objective):
    """Labels, a teacher's softened logits, its hidden states and attention, or several of them; the labels alone where
    nothing is said.

    Args:
        teacher: what it said.
        states: what one went through, which may be another than gave the logits.
        project: see apart.
    """

    def __init__(
        self,
        model: Encoder,
        terms: Distillation | None = None,
        teacher: Logits | None = None,
        states: States | None = None,
        project: nn.Module | None = None,
    ) -> None:
        super().__init__(model)
        self.project = project
        self._terms = terms or Distillation(hard=1.0, logits=0.0)
        self._teacher = teacher
        self._states = states

    def encode(self, given: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states, and what it costs that they are not the teacher's."""
        if self._states is None:
            return self.model(given.ids, given.types, given.lengths), torch.zeros((), device=given.ids.device)
        ours = Trace(self._terms.attention > 0)
        hidden = self.model(given.ids, given.types, given.lengths, trace=ours)
        return hidden, apart(self._terms, ours, self._states(given), given.mask, self.project)


class SpanLoss(TaskLoss):
    """Question answering: cross entropy of start and end, half each, and the teacher's softened start and end, logits
    [L, 2] of each example.

    Every token of the window may be an end of a span, question and [SEP] too, as in BERT; decoding knows better.
    """

    def forward(self, given: Batch) -> Tensor:
        hidden, total = self.encode(given)
        logits = self.model.span_logits(hidden).float()
        mask = given.mask
        masked = logits.masked_fill(~mask[..., None], distill.MASKED)
        if self._terms.hard:
            for which, name in enumerate(("start", "end")):
                total = total + self._terms.hard / 2 * F.cross_entropy(
                    masked[..., which], given.labels[name], reduction="sum"
                )
        if self._terms.logits:
            assert self._teacher is not None
            wanted = torch.zeros_like(logits)
            for row, known in enumerate(self._teacher(given.numbers)):
                wanted[row, : len(known)] = torch.from_numpy(known.astype(np.float32)).to(logits.device)
            for which in (0, 1):
                divergence = distill.soft_logits(logits[..., which], wanted[..., which], self._terms.temperature, mask)
                total = total + self._terms.logits / 2 * divergence.sum()
        return total


class ClassLoss(TaskLoss):
    """Classification: cross entropy, and the teacher's softened classes, logits [classes] of each example."""

    def forward(self, given: Batch) -> Tensor:
        hidden, total = self.encode(given)
        logits = self.model.class_logits(hidden).float()
        if self._terms.hard:
            total = total + self._terms.hard * F.cross_entropy(logits, given.labels["class"], reduction="sum")
        if self._terms.logits:
            assert self._teacher is not None
            wanted = torch.from_numpy(np.stack(self._teacher(given.numbers)).astype(np.float32)).to(logits.device)
            total = total + self._terms.logits * distill.soft_logits(logits, wanted, self._terms.temperature).sum()
        return total
