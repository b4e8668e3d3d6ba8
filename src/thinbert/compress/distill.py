"""What a student learns from a teacher: logits softened by a temperature, hidden states, attention scores."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from thinbert.errors import InputError

MASKED = -1e4  # a logit where there is no token: nothing, and still finite in 16 bits


def soft_logits(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(z_T / T) || softmax(z_S / T)) over the last dimension, one value per row (Hinton et al. 2015).

    Args:
        student, teacher: [..., N].
        mask: True where there is a choice; elsewhere both probabilities are zero.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    if mask is not None:
        student, teacher = student.masked_fill(~mask, MASKED), teacher.masked_fill(~mask, MASKED)
    divergence = F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="none", log_target=True)
    return divergence.sum(-1) * temperature**2


def layer_map(student: int, teacher: int) -> list[int]:
    """Which of a teacher's `teacher` layers each of `student` layers follows: every k-th, the last by the last
    (Jiao et al. 2020, g(m) = m N / M). Raises InputError where N is no multiple of M."""
    if teacher % student:
        raise InputError(f"a teacher of {teacher} layers cannot be spread over {student}: not a multiple")
    return [m * (teacher // student) for m in range(student + 1)]


def hidden_states(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared error of mapped hidden states (embeddings first), summed over layers, one value per sequence.

    Args:
        student, teacher: [B, L, D] each, one for each embedding and layer; the teacher's already chosen by layer_map.
        mask: [B, L], True where there is a token.
    """
    total = torch.zeros(len(mask), device=mask.device)
    counts = mask.sum(1)
    for s, t in zip(student, teacher, strict=True):
        difference = s.float() - t.float()
        total = total + (difference.square().mean(-1) * mask).sum(1) / counts
    return total


def last_states(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """One less the cosine between last hidden states, mean over tokens, one value per sequence (Sanh et al. 2019).
    States [B, L, D] each; mask [B, L]."""
    apart = 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (apart * mask).sum(1) / mask.sum(1)


def attention_scores(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared error of attention scores before the softmax, over heads and pairs of tokens that exist (Jiao et al.
    2020), summed over layers, one value per sequence. Scores [B, H, L, L] each; mask [B, L]."""
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    total = torch.zeros(len(mask), device=mask.device)
    for s, t in zip(student, teacher, strict=True):
        if s.shape[1] != t.shape[1]:
            raise InputError(f"a student of {s.shape[1]} heads cannot follow {t.shape[1]}")
        squares = (s.float() - t.float()).square() * pairs
        total = total + squares.sum((1, 2, 3)) / (pairs.sum((1, 2, 3)) * s.shape[1])
    return total
