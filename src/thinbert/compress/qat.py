"""The engine's rounding in torch, with straight-through gradients: docs/format.md, "Arithmetic of the engine".

What training sees under these functions is what the engine computes of the same weights, up to the last bits of floats:
embeddings and matrices s8 with a scale per row, activations u8 with a scale and zero point per token and piece of
columns, queries, keys and values s8 per token and head, probabilities u8. Everything runs in float32, which holds the
integers exactly.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from thinbert.model.quantize import LEVELS

GROUP_COLUMNS = 768  # as in core/weights.h
SMALLEST = 1e-30


def pieces(columns: int) -> list[slice]:
    """The pieces of K columns that share one quantisation: as few as fit, of equal size, a multiple of 16."""
    count = max(1, math.ceil(columns / GROUP_COLUMNS))
    size = math.ceil(math.ceil(columns / count) / 16) * 16
    return [slice(i * size, min(columns, (i + 1) * size)) for i in range(count)]


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of x."""
    return x + (rounded - x).detach()


def rows(weight: Tensor) -> Tensor:
    """Rows [..., K] of a matrix as stored: scale = max|row| / 127, half to even; a row of zeros stays one."""
    scale = weight.detach().abs().amax(-1, keepdim=True) / LEVELS
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    rounded = (weight.detach() / scale).round().clamp(-LEVELS, LEVELS) * scale
    return straight_through(rounded, weight)


def tokens(x: Tensor) -> Tensor:
    """Activations [..., K] of one piece as the products see them: u8 with a step and zero point per token."""
    value = x.detach()
    low, high = value.amin(-1, keepdim=True).clamp(max=0), value.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low).clamp(min=SMALLEST) * (1 / 255)
    inverse = (1 / step).double()  # float64 holds the product of two floats exactly, so each sum is rounded once
    zero = (-low.double() * inverse).round()
    q = (value.double() * inverse + zero).round().clamp(max=255)
    return straight_through(((q - zero) * step).to(x.dtype), x)


def linear(x: Tensor, weight: Tensor, bias: Tensor, columns: Tensor | None = None) -> Tensor:
    """x W^T + b with both sides rounded, over some columns alone where others are zero and packing cuts them out."""
    with torch.autocast(x.device.type, enabled=False):
        if columns is not None:
            x, weight = x[..., columns], weight[:, columns]
        w, x, y = rows(weight.float()), x.float(), bias.float()
        for p in pieces(x.shape[-1]):
            y = y + tokens(x[..., p]) @ w[:, p].T
        return y


def symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., L, d] in steps of a scale per token: s8 values, as floats, with the gradient of x / scale; the scale."""
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=SMALLEST) * (1 / LEVELS)
    steps = x * (1 / scale)
    return straight_through(steps.detach().round(), steps), scale


def exp2(x: Tensor) -> Tensor:
    """2^x for x <= 0: the engine's cubic in the fraction, within 1.0e-4."""
    whole = x.detach().floor()
    r = x - whole
    return (((0.07826797 * r + 0.22630768) * r + 0.69542435) * r + 1) * torch.exp2(whole)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, H, L, d] each, rounded as the engine does; mask is True where there is a key."""
    with torch.autocast(q.device.type, enabled=False):
        return _attention(q, k, v, mask, dropout)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    (qi, q_scale), (ki, k_scale), (vi, v_scale) = symmetric(q.float()), symmetric(k.float()), symmetric(v.float())
    scores = (qi @ ki.transpose(-1, -2)) * k_scale.transpose(-1, -2)
    scores = scores * (q_scale * (math.log2(math.e) / math.sqrt(q.shape[-1])))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
        v_scale = v_scale.masked_fill(~mask.transpose(-1, -2), 0.0)
    scores = scores - scores.detach().amax(-1, keepdim=True)
    e = exp2(scores.clamp(min=-126))
    shares = e * v_scale.transpose(-1, -2)
    unit = 255 / v_scale.amax(dim=(-1, -2), keepdim=True)
    p = straight_through((shares.detach() * unit).round() / unit, shares)
    return (F.dropout(p, dropout, dropout > 0) @ vi) / e.sum(-1, keepdim=True)
