"""The engine's arithmetic in NumPy, as docs/format.md states it: which numbers are rounded, how, and with which scales.

Sums of integers are exact here and there; floats may differ in their last bits, and a value that lies between two steps
may then round to either.
"""

import math
import re
from pathlib import Path

import numpy as np

from thinbert.model import reference
from thinbert.model.checkpoint import Checkpoint
from thinbert.model.families import FAMILIES
from thinbert.model.quantize import dequantize_rows, quantize_rows

GROUP_COLUMNS = 768
SMALLEST = np.float32(1e-30)
f32 = np.float32


f64 = np.float64
HEADER = (Path(__file__).parent.parent / "core" / "gelu.h").read_text()
CLAMP, STRETCH = (f32(re.search(rf"{name} = (.*)f;", HEADER)[1]) for name in ("kGeluClamp", "kGeluStretch"))
GELU = [f32(term) for term in re.findall(r"^    (.*)f,$", HEADER, re.MULTILINE)]


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c rounded once: float64 holds the product of two floats exactly."""
    return (np.asarray(a, f64) * b + c).astype(f32)


def pieces(columns: int) -> list[slice]:
    count = max(1, math.ceil(columns / GROUP_COLUMNS))
    size = math.ceil(math.ceil(columns / count) / 16) * 16
    return [slice(i * size, min(columns, (i + 1) * size)) for i in range(count)]


def product(x: np.ndarray, name: str, checkpoint: Checkpoint) -> np.ndarray:
    """x [T, K] times an int8 matrix [N, K]: per token and piece of K, inputs as u8 with a scale and a zero point."""
    stem = name.removesuffix(".weight")
    values, scale = int8(checkpoint, name)
    out = np.broadcast_to(checkpoint.array(f"{stem}.bias"), (len(x), len(values))).astype(f32)
    for piece in pieces(x.shape[1]):
        part = x[:, piece]
        low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
        step = np.maximum(high - low, SMALLEST) * f32(1 / 255)
        inverse = f32(1) / step
        zero = np.rint(-low.astype(f64) * inverse)
        q = np.minimum(np.rint(part.astype(f64) * inverse[:, None] + zero[:, None]), 255).astype(np.int64)
        weight = values[:, piece].astype(np.int64)
        exact = q @ weight.T - zero.astype(np.int64)[:, None] * weight.sum(axis=1)
        out = out + exact.astype(f32) * (scale * step[:, None])
    return out


def int8(checkpoint: Checkpoint, name: str) -> tuple[np.ndarray, np.ndarray]:
    return quantize_rows(checkpoint.array(name))


def symmetric(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[L, d] to s8 with one scale a token."""
    scale = np.maximum(np.abs(x).max(axis=1), SMALLEST) * f32(1 / 127)
    return np.rint(x * (f32(1) / scale)[:, None]).astype(np.int64), scale


def exp2(x: np.ndarray) -> np.ndarray:
    """2^x for x <= 0 by a cubic in its fraction."""
    x = np.maximum(x, f32(-126))
    n = np.floor(x)
    r = x - n
    p = fma(r, f32(0.07826797), f32(0.22630768))
    return np.ldexp(fma(fma(p, r, f32(0.69542435)), r, f32(1)), n.astype(np.int64))


def gelu(x: np.ndarray) -> None:
    """In place."""
    c = np.clip(x, -CLAMP, CLAMP)
    t = fma(c * c, STRETCH, f32(-1))
    p = np.full_like(x, GELU[-1])
    for term in GELU[-2::-1]:
        p = fma(p, t, term)
    x *= fma(c, p, f32(0.5))


def gelu_new(x: np.ndarray) -> None:
    """In place: x sigmoid(2 u), where e = exp(-2 |u|)."""
    u2 = f32(2.3022082) * x * fma(f32(0.044715), x * x, f32(1))
    e = exp2(-np.abs(u2))
    small = e / (1 + e)
    x *= np.where(x > 0, 1 - small, small)


ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_new}


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One head of one sequence, [L, d] each."""
    (qi, qs), (ki, ks), (vi, vs) = symmetric(q), symmetric(k), symmetric(v)
    scores = (qi @ ki.T).astype(f32) * ks
    scale = qs[:, None] * f32(math.log2(math.e) / math.sqrt(q.shape[1]))
    e = exp2((scores - scores.max(axis=1, keepdims=True)) * scale)
    unit = f32(255) / vs.max()
    p = np.rint(e.astype(f64) * (vs * unit)).astype(np.int64)
    return (p @ vi).astype(f32) * ((f32(1) / unit) / e.sum(axis=1))[:, None]


def hidden(checkpoint: Checkpoint, ids: np.ndarray, types: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Hidden states [T, D]."""
    config, family = checkpoint.config, FAMILIES[checkpoint.config.family]
    norm = reference._layer_norm(config.norm_eps) if config.norm == "layer_norm" else reference._no_norm
    table = {f: family.prefix + stem for f, stem in family.embeddings.items()}
    positions = np.concatenate([np.arange(n) for n in lengths])
    rows = {"token": ids, "position": positions, "token_type": types}
    x = sum(dequantize_rows(*int8(checkpoint, name))[rows[f]] for f, name in table.items() if f != "norm")
    x = norm(checkpoint.norm(table["norm"]), x)
    d = config.head_size
    for i in range(config.layers):
        stem = {f: family.prefix + s.format(i=i) for f, s in family.layer.items()}
        q, k, v = (product(x, f"{stem[f]}.weight", checkpoint) for f in ("query", "key", "value"))
        context, start = np.empty_like(q), 0
        for n in lengths:
            at = slice(start, start + n)
            for h in range(config.heads[i]):
                columns = slice(h * d, (h + 1) * d)
                context[at, columns] = attention(q[at, columns], k[at, columns], v[at, columns])
            start += n
        x = norm(
            checkpoint.norm(stem["attention_norm"]),
            x + product(context, f"{stem['attention_output']}.weight", checkpoint),
        )
        inner = product(x, f"{stem['ffn_in']}.weight", checkpoint)
        ACTIVATIONS.get(config.activation, reference.ACTIVATIONS[config.activation])(inner)
        x = norm(checkpoint.norm(stem["ffn_norm"]), x + product(inner, f"{stem['ffn_out']}.weight", checkpoint))
    return x
