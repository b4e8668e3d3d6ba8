"""Losses of the tasks, each a sum over the examples of a batch, with or without a teacher."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from thinbert.compress import distill
from thinbert.compress.data import Batch
from thinbert.compress.encoder import Encoder
from thinbert.compress.train import Objective


@dataclass(frozen=True)
class Distillation:
    """Weights of the terms of the loss."""

    hard: float = 0.0  # the task's own labels
    logits: float = 1.0
    temperature: float = 2.0
    hidden: float = 0.0
    attention: float = 0.0


Teacher = Callable[[NDArray[np.int64]], list[NDArray[np.float16]]]  # example numbers -> the logits of each


class TaskLoss(Objective):
    """Labels, a teacher's softened logits, or both; the labels alone where nothing is said."""

    def __init__(self, model: Encoder, terms: Distillation | None = None, teacher: Teacher | None = None) -> None:
        super().__init__(model)
        self._terms = terms or Distillation(hard=1.0, logits=0.0)
        self._teacher = teacher


class SpanLoss(TaskLoss):
    """Question answering: cross entropy of start and end, half each, and the teacher's softened start and end, logits
    [L, 2] of each example.

    Every token of the window may be an end of a span, question and [SEP] too, as in BERT; decoding knows better.
    """

    def forward(self, given: Batch) -> Tensor:
        logits = self.model.span_logits(self.model(given.ids, given.types, given.lengths)).float()
        mask = given.mask
        masked = logits.masked_fill(~mask[..., None], distill.MASKED)
        total = torch.zeros((), device=logits.device)
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
        logits = self.model.class_logits(self.model(given.ids, given.types, given.lengths)).float()
        total = torch.zeros((), device=logits.device)
        if self._terms.hard:
            total = total + self._terms.hard * F.cross_entropy(logits, given.labels["class"], reduction="sum")
        if self._terms.logits:
            assert self._teacher is not None
            wanted = torch.from_numpy(np.stack(self._teacher(given.numbers)).astype(np.float32)).to(logits.device)
            total = total + self._terms.logits * distill.soft_logits(logits, wanted, self._terms.temperature).sum()
        return total
