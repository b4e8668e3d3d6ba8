"""The engine's rounding in torch, with straight-through gradients: docs/format.md, "Arithmetic of the engine".

What training sees under these functions is what the engine computes of the same weights, up to the last bits of floats:
embeddings and matrices s8 with a scale per row, activations u8 with a scale and zero point per token and piece of
columns, queries, keys and values s8 per token and head, probabilities u8. Everything is computed in float32, but for
gradients of products, which have the precision of the loop, as without rounding.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    """Activations [..., K] as the products see them, without a gradient: u8 with a step and zero point per token and
    piece of columns."""
    rounded = torch.empty_like(x)
    for p in pieces(x.shape[-1]):
        value = x[..., p]
        low, high = value.amin(-1, keepdim=True).clamp(max=0), value.amax(-1, keepdim=True).clamp(min=0)
        step = (high - low).clamp(min=SMALLEST) * (1 / 255)
        inverse = (1 / step).double()  # float64 holds the product of two floats exactly, so each sum is rounded once
        zero = (-low.double() * inverse).round()
        q = value.double().mul_(inverse).add_(zero).round_().clamp_(max=255)
        rounded[..., p] = q.sub_(zero).mul_(step)
    return rounded


def linear(x: Tensor, weight: Tensor, bias: Tensor, columns: Tensor | None = None) -> Tensor:
    """x W^T + b with both sides rounded, over some columns alone where others are zero and packing cuts them out."""
    product: Tensor = _Linear.apply(x, weight, bias, columns)  # type: ignore[no-untyped-call]
    return product


class _Linear(torch.autograd.Function):
    """Its gradients are those of the product of what was rounded, straight through the rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, columns: Tensor | None) -> Tensor:
        kind, ctx.of_inputs, ctx.columns = x.device.type, x.shape[-1], columns
        loop = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            if columns is not None:
                x, weight = x[..., columns], weight[:, columns]
            x, weight = tokens(x.float()), rows(weight.float())
            ctx.save_for_backward(x.to(loop), weight.to(loop))
            return F.linear(x, weight, bias.float())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        along = gradient.to(x.dtype)
        of_x, of_weight = along @ weight, along.flatten(0, -2).T @ x.flatten(0, -2)
        of_x, of_weight = (_spread(each.float(), ctx.columns, ctx.of_inputs) for each in (of_x, of_weight))
        return of_x, of_weight, gradient.flatten(0, -2).sum(0), None


def _spread(some: Tensor, columns: Tensor | None, count: int) -> Tensor:
    """Back to all columns [..., count], zero where there was none."""
    if columns is None:
        return some
    return some.new_zeros(*some.shape[:-1], count).index_copy_(-1, columns, some)


def symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., L, d] in steps of a scale per token: s8 values, as floats, with the gradient of x / scale; the scale."""
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=SMALLEST) * (1 / LEVELS)
    steps = x * (1 / scale)
    return straight_through(steps.detach().round(), steps), scale


class _Exp2(torch.autograd.Function):
    """2^x for x <= 0: the engine's cubic in the fraction, within 1.0e-4. Its gradient is that of 2^x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        whole = x.floor()
        r = x - whole
        cubic = torch.full_like(r, 0.07826797)
        for coefficient in (0.22630768, 0.69542435, 1.0):
            cubic.mul_(r).add_(coefficient)
        power = cubic.mul_(whole.exp2_())
        ctx.save_for_backward(power)
        return power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (power,) = ctx.saved_tensors
        slope: Tensor = gradient * power * math.log(2)
        return slope


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, H, L, d] each, rounded as the engine does; mask is True where there is a key."""
    with torch.autocast(q.device.type, enabled=False):
        return _attention(q, k, v, mask, dropout)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    (qi, q_scale), (ki, k_scale), (vi, v_scale) = symmetric(q.float()), symmetric(k.float()), symmetric(v.float())
    B, H, L, d = q.shape
    qi, ki = qi * (q_scale * (math.log2(math.e) / math.sqrt(d))), ki * k_scale
    hidden = torch.zeros(B, 1, 1, L, device=q.device)
    if mask is not None:
        hidden = hidden.masked_fill(~mask, -1e9)
        v_scale = v_scale.masked_fill(~mask.transpose(-1, -2), 0.0)
    scores = torch.baddbmm(hidden.expand(B, H, L, L).reshape(B * H, L, L), qi.flatten(0, 1), ki.flatten(0, 1).mT)
    scores = scores.reshape(B, H, L, L)
    below = scores - scores.detach().amax(-1, keepdim=True)
    e: Tensor = _Exp2.apply(below.clamp(min=-126))  # type: ignore[no-untyped-call]
    shares = e * v_scale.transpose(-1, -2)
    unit = 255 / v_scale.amax(dim=(-1, -2), keepdim=True)
    p = straight_through((shares.detach() * unit).round() / unit, shares)
    return (F.dropout(p, dropout, dropout > 0) @ vi) / e.sum(-1, keepdim=True)
