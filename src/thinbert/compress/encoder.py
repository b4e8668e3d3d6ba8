"""The encoder in torch, for training: the forward pass of model/reference.py with masks and rounding as part of it.

Modules carry the field names of model/weights.py; families.py says what a checkpoint calls them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from thinbert.compress import qat
from thinbert.errors import ModelError
from thinbert.model import weights
from thinbert.model.checkpoint import Checkpoint
from thinbert.model.compact import compact
from thinbert.model.config import EncoderConfig
from thinbert.model.families import FAMILIES, Family

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Linear(nn.Linear):
    """y = x W^T + b, with W masked where there is a mask, and both sides rounded as the engine does it when asked."""

    mask: Tensor | None
    columns: Tensor | None  # which of its inputs packing keeps, where it cuts some

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", None)
        self.register_buffer("columns", None, persistent=False)
        self.quantised = False

    def matrix(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask

    def mask_also(self, kept: Tensor) -> None:
        """Masks what is not kept, [N, 1] or [K], beside what is masked already."""
        kept = kept.expand_as(self.weight)
        self.mask = kept.clone() if self.mask is None else self.mask & kept

    def forward(self, x: Tensor) -> Tensor:
        if self.quantised:
            return qat.linear(x, self.matrix(), self.bias, self.columns)
        return F.linear(x, self.matrix(), self.bias)


class Norm(nn.Module):
    """Layer norm, or the affine map alone (NoNorm)."""

    def __init__(self, width: int, config: EncoderConfig) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = config.norm_eps if config.norm == "layer_norm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.eps is None:
            return (x * self.weight + self.bias).to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, H, L, d] each; mask is True where there is a key.

    On a CPU in three plain operations: the backward pass of torch's fused attention takes four times as long there
    (16 ms against 58 both ways, 20 x 180 tokens of 12 heads in bfloat16 on two cores).
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
    B, H, L, d = q.shape
    q, k, v = (x.reshape(B * H, L, d) for x in (q * d**-0.5, k, v))
    if mask is None:
        scores = q @ k.transpose(1, 2)
    else:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -1e4)
        scores = torch.baddbmm(bias.expand(B, H, L, L).reshape(B * H, L, L), q, k.transpose(1, 2))
    return (F.dropout(scores.softmax(-1), dropout, dropout > 0) @ v).reshape(B, H, L, d)


@dataclass
class Trace:
    """What a forward pass went through, kept when asked for: the terms of distillation (see compress/distill.py)."""

    attention: bool = True  # whether scores are kept: they cost a product more
    hidden: list[Tensor] = field(default_factory=list)  # [B, L, D] embeddings and each layer's output
    scores: list[Tensor] = field(default_factory=list)  # [B, H, L, L] attention scores before the softmax, by layer


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        D, A, inner = config.width, config.heads[number] * config.head_size, config.ffn[number]
        self.query, self.key, self.value = Linear(D, A), Linear(D, A), Linear(D, A)
        self.attention_output, self.attention_norm = Linear(A, D), Norm(D, config)
        self.ffn_in, self.ffn_out, self.ffn_norm = Linear(D, inner), Linear(inner, D), Norm(D, config)
        self._activation = ACTIVATIONS[config.activation]
        self._head_size = config.head_size
        self.dropout = 0.0

    def forward(self, x: Tensor, mask: Tensor | None, trace: Trace | None) -> Tensor:
        context = self._attention(x, mask, trace)
        x = self.attention_norm(x + self._drop(self.attention_output(context)))
        inner = self._activation(self.ffn_in(x))
        return self.ffn_norm(x + self._drop(self.ffn_out(inner)))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor, mask: Tensor | None, trace: Trace | None) -> Tensor:
        """softmax(q k^T / sqrt(d)) v: [B, L, D] to [B, L, H d]; mask [B, 1, 1, L] is True where there is a token."""
        B, L, _ = x.shape
        q, k, v = (
            linear(x).reshape(B, L, -1, self._head_size).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        if trace is not None and trace.attention:
            trace.scores.append(q @ k.transpose(-1, -2) * self._head_size**-0.5)
        attend = qat.attention if self.query.quantised else attention
        context = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return context.transpose(1, 2).reshape(B, L, -1)

    def arrays(self) -> weights.Layer:
        """As the inference side has it, masked weights as zeros."""

        def array(tensor: Tensor) -> NDArray[np.float32]:
            return tensor.detach().float().cpu().numpy()

        parts: dict[str, weights.Linear | weights.Norm] = {}
        for f in fields(weights.Layer):
            module = getattr(self, f.name)
            if isinstance(module, Linear):
                parts[f.name] = weights.Linear(array(module.matrix()), array(module.bias))
            else:
                parts[f.name] = weights.Norm(array(module.weight), array(module.bias))
        return weights.Layer(**parts)  # type: ignore[arg-type]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Encoder(nn.Module):
    """A BERT-family encoder with the heads it is asked for."""

    def __init__(self, config: EncoderConfig, heads: Mapping[str, int]) -> None:
        """heads: of span, classify, mlm and nsp, with the number of classes for `classify` (else it is not read)."""
        super().__init__()
        D = config.width
        self.config = config
        self.dropout, self.quantised = 0.0, False
        self.token, self.position = nn.Embedding(config.vocabulary, D), nn.Embedding(config.positions, D)
        self.token_type = nn.Embedding(config.token_types, D) if config.token_types else None
        self.norm = Norm(D, config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.span = Linear(D, 2) if "span" in heads else None
        # one hidden layer before the classes, which BERT calls the pooler and shares with next-sentence prediction
        self.classify_hidden = Linear(D, D) if {"classify", "nsp"} & set(heads) else None
        self.classify_out = Linear(D, heads["classify"]) if "classify" in heads else None
        self.nsp = Linear(D, 2) if "nsp" in heads else None
        self.mlm_transform = Linear(D, D) if "mlm" in heads else None
        self.mlm_norm = Norm(D, config) if "mlm" in heads else None
        self.mlm_bias = nn.Parameter(torch.zeros(config.vocabulary)) if "mlm" in heads else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)  # as BERT is initialised
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self, ids: Tensor, types: Tensor, lengths: Tensor | None = None, *, trace: Trace | None = None
    ) -> Tensor:
        """Hidden states [B, L, D].

        Args:
            ids, types: [B, L], padded with anything past each sequence's end.
            lengths: [B]; None where all sequences have L tokens.
            trace: filled with what distillation looks at.
        """
        L = ids.shape[1]
        mask = None if lengths is None else (torch.arange(L, device=ids.device) < lengths[:, None])[:, None, None, :]
        rows = [self.token(ids), self.position.weight[:L]]
        if self.token_type is not None:
            rows.append(self.token_type(types))
        if self.quantised:
            rows = [qat.rows(r) for r in rows]
        x = F.dropout(self.norm(reduce(torch.add, rows)), self.dropout, self.training)
        if torch.is_autocast_enabled(x.device.type) and not self.quantised:  # the engine's stream is in float32
            # the residual stream too: half the memory traffic (on a GPU until the first norm, which gives float32)
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if trace is not None:
            trace.hidden.append(x)
        for layer in self.layers:
            x = layer(x, mask, trace)
            if trace is not None:
                trace.hidden.append(x)
        return x

    def span_logits(self, hidden: Tensor) -> Tensor:
        """[B, L, 2] from hidden states."""
        assert self.span is not None
        if not self.quantised:
            return self.span(hidden)  # type: ignore[no-any-return]
        with self._in_float32(hidden):  # as packed: its matrix is rounded, what it reads is not
            return F.linear(hidden, qat.rows(self.span.weight), self.span.bias)

    def class_logits(self, hidden: Tensor) -> Tensor:
        """[B, classes]."""
        assert self.classify_out is not None
        with self._in_float32(hidden) if self.quantised else nullcontext():  # as packed
            return self.classify_out(F.dropout(self._pooled(hidden), self.dropout, self.training))  # type: ignore[no-any-return]

    def nsp_logits(self, hidden: Tensor) -> Tensor:
        """[B, 2]: the second segment follows, or is from elsewhere."""
        assert self.nsp is not None
        return self.nsp(self._pooled(hidden))  # type: ignore[no-any-return]

    def mlm_logits(self, rows: Tensor) -> Tensor:
        """[M, V] of hidden states [M, D] at the masked places: the output matrix is the token embeddings."""
        assert self.mlm_transform is not None
        assert self.mlm_norm is not None
        x = self.mlm_norm(ACTIVATIONS[self.config.activation](self.mlm_transform(rows)))
        return F.linear(x, self.token.weight, self.mlm_bias)

    @staticmethod
    def _in_float32(hidden: Tensor) -> torch.autocast:
        return torch.autocast(hidden.device.type, enabled=False)

    def _pooled(self, hidden: Tensor) -> Tensor:
        assert self.classify_hidden is not None
        activation = torch.tanh if FAMILIES[self.config.family].classify_activation == "tanh" else F.relu
        return activation(self.classify_hidden(hidden[:, 0]))

    def linears(self) -> dict[str, Linear]:
        """The matrices of the layers by our names, `layers.0.query` and so on."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Linear) and name.startswith("layers.")}

    def prunable(self) -> dict[str, Linear]:
        """The matrices of the layers and the pooler, where a head stands on it: what masks are made for.

        The pooler is pre-trained with next-sentence prediction and pruned there with the rest (Zafrir et al. 2021), and
        kept in that pattern for classification. Heads that begin anew with each task are not pruned, nor is
        DistilBERT's hidden layer, which is part of no published pre-training.
        """
        pooler = self.classify_hidden if "pooler" in FAMILIES[self.config.family].classify_hidden else None
        return self.linears() | ({"classify_hidden": pooler} if pooler is not None else {})

    def set_dropout(self, share: float) -> None:
        self.dropout = share
        for layer in self.layers:
            cast(Layer, layer).dropout = share

    def order_classes(self, order: Sequence[int]) -> None:
        """Gives the classes of the head other numbers: class i becomes order[i]."""
        assert self.classify_out is not None
        back = torch.tensor(order).argsort()
        with torch.no_grad():
            for p in (self.classify_out.weight, self.classify_out.bias):
                p.copy_(p[back].clone())

    def set_quantised(self, on: bool) -> None:
        """Rounds weights and activations as a packed model has them, from the next pass on: embeddings, layers and the
        span head's matrix. The head of classes is packed as it is."""
        self.quantised = on
        for linear in self.linears().values():
            linear.quantised = on

    def cut_dead(self) -> None:
        """What packing does to heads and neurons that cannot matter (model/compact.py), before a locked pattern is
        trained under the engine's rounding: what they add goes into biases, their weights are masked, and products are
        rounded over the columns that stay, as in the packed model."""
        layers = [cast(Layer, layer) for layer in self.layers]
        cut = compact(self.config, tuple(layer.arrays() for layer in layers))
        for layer, packed, heads, neurons in zip(layers, cut.layers, cut.heads, cut.neurons, strict=True):
            features = heads.repeat(self.config.head_size)
            alive = np.zeros_like(neurons)  # of those that stay for the sake of their block some are dead
            alive[neurons] = packed.ffn_in.weight.any(axis=1)
            heard = [layer.query, layer.key, layer.value]
            _cut(heard, layer.attention_output, packed.attention_output.bias, stays=features, matters=features)
            _cut([layer.ffn_in], layer.ffn_out, packed.ffn_out.bias, stays=neurons, matters=alive)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Masks by the names of `prunable`; what a mask drops counts as zero from now on."""
        linears = self.prunable()
        for name, mask in masks.items():
            linears[name].mask = mask.to(linears[name].weight.device)

    def masks(self) -> dict[str, Tensor]:
        return {name: linear.mask for name, linear in self.prunable().items() if linear.mask is not None}


def _cut(
    inner: Sequence[Linear],
    outer: Linear,
    bias: NDArray[np.float32],
    *,
    stays: NDArray[np.bool_],
    matters: NDArray[np.bool_],
) -> None:
    """Masks outputs of `inner`, inputs of `outer`, that do not matter; `outer` is rounded over what stays."""
    if matters.all():
        return
    kept = torch.from_numpy(matters).to(outer.weight.device)
    for linear in inner:
        linear.mask_also(kept[:, None])
    outer.mask_also(kept)
    outer.columns = torch.from_numpy(stays.nonzero()[0]).to(outer.weight.device)
    with torch.no_grad():
        outer.bias.copy_(torch.from_numpy(bias))


def tensor_names(config: EncoderConfig, heads: Mapping[str, int]) -> dict[str, str]:
    """Our parameter names -> a checkpoint's tensor names."""
    family: Family = FAMILIES[config.family]
    names = {}
    for name, theirs in family.embeddings.items():
        if name != "norm":
            names[f"{name}.weight"] = family.prefix + theirs
    stems = {"norm": family.prefix + family.embeddings["norm"]}
    for i in range(config.layers):
        stems |= {f"layers.{i}.{f}": family.prefix + stem.format(i=i) for f, stem in family.layer.items()}
    if "span" in heads:
        stems["span"] = family.span
    if {"classify", "nsp"} & set(heads):
        stems["classify_hidden"] = family.classify_hidden
    if "classify" in heads:
        stems["classify_out"] = family.classify_out
    if "nsp" in heads:
        stems["nsp"] = family.nsp
    if "mlm" in heads:
        stems |= {"mlm_transform": family.mlm_transform, "mlm_norm": family.mlm_norm}
        names["mlm_bias"] = family.mlm_bias
    for ours, stem in stems.items():
        names |= {f"{ours}.weight": f"{stem}.weight", f"{ours}.bias": f"{stem}.bias"}
    return names


def from_checkpoint(
    checkpoint: Checkpoint, heads: Mapping[str, int], *, anew: Collection[str] = ()
) -> tuple[Encoder, list[str]]:
    """The encoder of a model folder, and the tensors of its heads that the folder does not have: those begin anew.

    Args:
        anew: layers of heads that begin anew although the folder has them.
    Raises:
        ModelError: a head the folder has is of another shape than asked for.
    """
    model = Encoder(checkpoint.config, heads)
    begun, state = [], model.state_dict()
    for ours, theirs in tensor_names(checkpoint.config, heads).items():
        if ours.rpartition(".")[0] in anew:
            begun.append(ours)
            continue
        if theirs in checkpoint.shapes:
            array = checkpoint.array(theirs)
        elif theirs in checkpoint.ignored and checkpoint.ignored[theirs].dtype.kind == "f":
            array = np.asarray(checkpoint.ignored[theirs], np.float32)
        else:
            begun.append(ours)
            continue
        if array.shape != tuple(state[ours].shape):
            raise ModelError(
                f"{checkpoint.folder}: {theirs} has the shape {array.shape}; this task needs {tuple(state[ours].shape)}"
            )
        state[ours] = torch.from_numpy(array.copy())
    model.load_state_dict(state)
    return model, begun


def to_tensors(model: Encoder, heads: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """A checkpoint's tensors, float32, masked weights as zeros."""
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for name, linear in model.prunable().items():
        state[f"{name}.weight"] = linear.matrix().detach()
    return {
        theirs: np.ascontiguousarray(state[ours].float().cpu().numpy())
        for ours, theirs in tensor_names(model.config, heads).items()
    }
