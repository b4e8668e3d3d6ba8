"""The forward pass in NumPy: what an encoder computes, spelled out. Every faster path must agree with this one.

Ragged: the tokens of all sequences stand one after another in one array [T, D]; padding does not exist. It is written
to be read, but not to be slow: products go to BLAS, and element-wise work runs over blocks that stay in cache.

Dims: T tokens of all sequences · L tokens of one · D width · H heads · d head size · F FFN width.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from thinbert.model.config import EncoderConfig
from thinbert.model.weights import Array, ClassifyHead, Embeddings, Ints, Layer, Linear, Norm, Weights

# Values per block of element-wise work: 64 Ki float32 = 256 KiB, so that input and scratch share a 1 MiB L2.
_BLOCK = 1 << 16


def encode(
    weights: Weights,
    config: EncoderConfig,
    token_ids: Ints,
    token_types: Ints,
    lengths: Sequence[int],
    *,
    trace: list[Array] | None = None,
) -> Array:
    """Hidden states [T, D] of ragged sequences.

    Args:
        token_ids, token_types: [T], sequences one after another.
        lengths: L of each sequence; they sum to T.
        trace: when a list, the embedding output and each layer's output are appended to it (for tests).
    """
    norm = _layer_norm(config.norm_eps) if config.norm == "layer_norm" else _no_norm
    x = _embed(weights.embeddings, token_ids, token_types, lengths, norm)
    if trace is not None:
        trace.append(x)
    activate = ACTIVATIONS[config.activation]
    for layer in weights.layers:
        x = _layer(layer, x, lengths, config.head_size, activate, norm)
        if trace is not None:
            trace.append(x)
    return x


def span_logits(head: Linear, hidden: Array) -> Array:
    """Start and end logits [T, 2] of the question-answering head."""
    return _linear(head, hidden)


def class_logits(head: ClassifyHead, firsts: Array) -> Array:
    """Logits [B, classes] from the hidden state [B, D] of each sequence's first token, [CLS]."""
    pooled = _linear(head.hidden, firsts)
    pooled = np.tanh(pooled) if head.activation == "tanh" else np.maximum(pooled, 0)
    return _linear(head.out, pooled)


def _embed(
    e: Embeddings, token_ids: Ints, token_types: Ints, lengths: Sequence[int], norm: Callable[[Norm, Array], Array]
) -> Array:
    positions = np.concatenate([np.arange(n) for n in lengths])
    x = e.token[token_ids] + e.position[positions]
    if e.token_type is not None:
        x += e.token_type[token_types]
    return norm(e.norm, x)


def _layer(
    w: Layer,
    x: Array,
    lengths: Sequence[int],
    head_size: int,
    activate: Callable[[Array], None],
    norm: Callable[[Norm, Array], Array],
) -> Array:
    """One post-norm Transformer layer (Vaswani et al. 2017, as in BERT): [T, D] to [T, D]."""
    context = _attention(_linear(w.query, x), _linear(w.key, x), _linear(w.value, x), lengths, head_size)
    x = norm(w.attention_norm, x + _linear(w.attention_output, context))
    inner = _linear(w.ffn_in, x)
    activate(inner)
    return norm(w.ffn_norm, x + _linear(w.ffn_out, inner))


def _linear(w: Linear, x: Array) -> Array:
    y: Array = x @ w.weight.T
    y += w.bias
    return y


def _attention(q: Array, k: Array, v: Array, lengths: Sequence[int], head_size: int) -> Array:
    """softmax(q k^T / sqrt(d)) v per head and sequence: [T, H*d] each to [T, H*d]."""
    out = np.empty_like(q)
    scale = np.float32(1 / math.sqrt(head_size))
    start = 0
    for n in lengths:
        rows = slice(start, start + n)
        qh, kh, vh = (a[rows].reshape(n, -1, head_size).transpose(1, 0, 2) for a in (q, k, v))  # [H, L, d]
        scores = (qh * scale) @ kh.transpose(0, 2, 1)  # [H, L, L]
        scores -= scores.max(axis=-1, keepdims=True, initial=-np.inf)
        np.exp(scores, out=scores)
        totals = scores.sum(axis=-1, keepdims=True)
        context = scores @ vh  # dividing the d columns of the product is cheaper than the L of the scores
        context /= totals
        out[rows] = context.transpose(1, 0, 2).reshape(n, -1)
        start += n
    return out


def _layer_norm(eps: float) -> Callable[[Norm, Array], Array]:
    def norm(w: Norm, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.einsum("td,td->t", centred, centred)[:, None] / np.float32(x.shape[-1])
        centred /= np.sqrt(variance + np.float32(eps))
        y: Array = centred * w.weight + w.bias
        return y

    return norm


def _no_norm(w: Norm, x: Array) -> Array:
    """NoNorm of MobileBERT and nn_pruning: the affine map alone."""
    return x * w.weight + w.bias


def _blocks(function: Callable[[Array], None]) -> Callable[[Array], None]:
    """Makes an in-place element-wise function run over cache-sized blocks."""

    def run(x: Array) -> None:
        flat = x.reshape(-1)
        for start in range(0, len(flat), _BLOCK):
            function(flat[start : start + _BLOCK])

    return run


def _gelu(x: Array) -> None:
    """x <- x Phi(x), the exact GELU, with Phi through erf.

    erf by Abramowitz & Stegun 7.1.26, which is within 1.5e-7; the whole, in float32, is within 4e-7 for every x.
    """
    z = np.abs(x)
    z *= np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * np.float32(1.061405429)
    for a in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly += np.float32(a)
        poly *= t
    z *= z
    np.negative(z, out=z)
    poly *= np.exp(z, out=z)  # 1 - erf(|x|/sqrt 2) = 2 (1 - Phi(|x|))
    # x Phi(x) = max(x, 0) - |x| (1 - Phi(|x|)): no cancellation for negative x
    np.abs(x, out=z)
    poly *= z
    poly *= np.float32(0.5)
    np.maximum(x, 0, out=x)
    x -= poly


def _gelu_new(x: Array) -> None:
    """x <- the tanh form of GELU (Hendrycks & Gimpel 2016), used by some BERT derivatives."""
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(inner, out=inner)
    inner += 1
    x *= inner
    x *= np.float32(0.5)


def _relu(x: Array) -> None:
    np.maximum(x, 0, out=x)


ACTIVATIONS = {"gelu": _blocks(_gelu), "gelu_new": _blocks(_gelu_new), "relu": _blocks(_relu)}
