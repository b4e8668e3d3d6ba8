"""EncoderConfig: what a BERT-family encoder is, as plain frozen data, checked once when it is read."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinbert.errors import ModelError, quoted
from thinbert.model.families import FAMILIES

ACTIVATIONS = ("gelu", "gelu_new", "relu")
NORMS = ("layer_norm", "no_norm")
PACKED_VERSION = 1  # of the packed format, see thinbert.model.pack
UNFINISHED = "unfinished"  # stands for the version while a folder is being packed

_NORM_EPS = 1e-12  # where the config says nothing, and always in DistilBERT

# Sizes beyond any published encoder: a config from outside may not ask for more.
# The format numbers groups of four columns in 16 bits; the engine sums what a row of attention keeps in 32.
_MAX = {"layers": 256, "heads": 1024, "size": 1 << 18, "positions": 1 << 16, "vocabulary": 1 << 24}

_OF_OTHERS = ("ForTokenClassification", "ForMultipleChoice")  # architectures whose head of classes is not of texts

# How classes relate, where a config says it: transformers turns logits into scores by it.
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder. Per-layer tuples all have one entry per layer; a pruned layer simply has smaller numbers."""

    family: str  # row of thinbert.model.families.FAMILIES
    vocabulary: int  # V
    positions: int  # longest sequence, in tokens
    token_types: int  # 0 where the family has none (DistilBERT)
    width: int  # D
    head_size: int  # d
    heads: tuple[int, ...]  # H, heads stored in each layer
    ffn: tuple[int, ...]  # F, FFN neurons stored in each layer
    original_heads: int  # H of the dense model this one was cut from
    original_ffn: int  # F of that dense model
    activation: str  # one of ACTIVATIONS
    norm: str  # one of NORMS; no_norm is an affine map without statistics
    norm_eps: float
    labels: tuple[str, ...]  # of a classification head
    of_texts: bool  # whether a head of classes is of texts: not of tokens (tagging), nor of choices
    problem: str | None  # one of PROBLEMS, where the config says one
    no_answer_threshold: float | None  # fitted on held-out data; None when the model never learned to refuse
    no_answer_calibration: tuple[float, float]  # slope and offset of the log odds of no answer; 1, 0 leaves them

    @property
    def layers(self) -> int:
        return len(self.heads)


def parse_config(raw: Mapping[str, Any], *, where: str) -> EncoderConfig:
    """The checked form of a Hugging Face `config.json`.

    Honours `pruned_heads` (transformers 4: layer -> pruned head numbers, whose weights are absent from the file) and
    thinbert's own block `"thinbert": {"ffn": [...], "no_answer_threshold": ...}` (docs/format.md).

    Args:
        raw: the parsed JSON object.
        where: what to call it in messages.
    Raises:
        ModelError: a field is missing, of the wrong type, or asks for something no thinbert runtime computes.
    """
    model_type = raw.get("model_type")
    family = next((f for f in FAMILIES.values() if model_type in f.model_types), None)
    if family is None:
        known = ", ".join(t for f in FAMILIES.values() for t in f.model_types)
        raise ModelError(f"{where}: model_type is {quoted(model_type)}; thinbert reads {known}")

    def integer(field: str, limit: int, default: int | None = None) -> int:
        key = family.config_keys.get(field, field)
        value = raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            raise ModelError(f"{where}: {key} is {quoted(value)}; expected a whole number from 1 to {limit}")
        return value

    def choice(key: str, allowed: tuple[str, ...], default: str) -> str:
        value = raw.get(key, default)
        if value not in allowed:
            raise ModelError(f"{where}: {key} is {quoted(value)}; thinbert computes {', '.join(allowed)}")
        return str(value)

    layers = integer("num_hidden_layers", _MAX["layers"])
    width = integer("hidden_size", _MAX["size"])
    heads = integer("num_attention_heads", _MAX["heads"])
    ffn = integer("intermediate_size", _MAX["size"])
    if width % heads:
        raise ModelError(f"{where}: width {width} is not a multiple of {heads} heads")
    choice("position_embedding_type", ("absolute",), "absolute")
    if raw.get("is_decoder"):
        raise ModelError(f"{where}: is_decoder is true; thinbert runs encoders, not decoders")

    own = raw.get("thinbert", {})
    if not isinstance(own, Mapping):
        raise ModelError(f"{where}: the thinbert block is {type(own).__name__}; expected an object")
    packed = own.get("packed", PACKED_VERSION)
    if packed == UNFINISHED:
        raise ModelError(f"{where}: was not packed to its end; pack the model into it again")
    if packed != PACKED_VERSION:
        raise ModelError(
            f"{where}: packed with version {quoted(packed)} of the format; this thinbert reads version {PACKED_VERSION}"
        )
    eps = raw.get("layer_norm_eps", _NORM_EPS) if family.norm_eps_key else _NORM_EPS
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise ModelError(f"{where}: layer_norm_eps is {quoted(eps)}; expected a number between 0 and 1")
    return EncoderConfig(
        family=family.name,
        vocabulary=integer("vocab_size", _MAX["vocabulary"]),
        positions=integer("max_position_embeddings", _MAX["positions"]),
        token_types=integer("type_vocab_size", _MAX["size"], default=2) if family.token_types else 0,
        width=width,
        head_size=width // heads,
        heads=_remaining_heads(raw.get("pruned_heads") or {}, layers, heads, where),
        ffn=_ffn_widths(own.get("ffn"), layers, ffn, where),
        original_heads=heads,
        original_ffn=ffn,
        activation=choice(family.config_keys.get("hidden_act", "hidden_act"), ACTIVATIONS, "gelu"),
        norm=choice("layer_norm_type", NORMS, "layer_norm"),
        norm_eps=float(eps),
        labels=_labels(raw, where),
        of_texts=not any(str(name).endswith(_OF_OTHERS) for name in _listed(raw.get("architectures"))),
        problem=raw["problem_type"] if raw.get("problem_type") in PROBLEMS else None,
        no_answer_threshold=_threshold(own.get("no_answer_threshold"), where),
        no_answer_calibration=_calibration(own.get("no_answer_calibration"), where),
    )


def _remaining_heads(pruned: object, layers: int, heads: int, where: str) -> tuple[int, ...]:
    """Heads left in each layer once `pruned_heads` = {"layer": [head, …]} is taken off."""
    remaining = [heads] * layers
    if not isinstance(pruned, Mapping):
        raise ModelError(f"{where}: pruned_heads is {type(pruned).__name__}; expected layer -> list of heads")
    for key, gone in pruned.items():
        layer = int(key) if re.fullmatch("[0-9]{1,4}", str(key)) else -1
        if not 0 <= layer < layers:
            raise ModelError(f"{where}: pruned_heads names layer {quoted(key)}; the model has layers 0 to {layers - 1}")
        if not isinstance(gone, list) or not all(type(h) is int and 0 <= h < heads for h in gone):
            raise ModelError(
                f"{where}: pruned_heads of layer {key} is {quoted(gone)}; expected head numbers below {heads}"
            )
        remaining[layer] = heads - len(set(gone))
    return tuple(remaining)


def _ffn_widths(own: object, layers: int, ffn: int, where: str) -> tuple[int, ...]:
    if own is None:
        return (ffn,) * layers
    if not isinstance(own, list) or len(own) != layers or not all(type(f) is int and 0 <= f <= ffn for f in own):
        raise ModelError(
            f"{where}: thinbert.ffn is {quoted(own)}; expected {layers} widths from 0 to {ffn}, one per layer"
        )
    return tuple(own)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _labels(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Class names in index order from `id2label`; empty when the config has none."""
    table = raw.get("id2label")
    if table is None:
        return ()
    if not isinstance(table, Mapping) or sorted(map(str, table)) != sorted(str(i) for i in range(len(table))):
        raise ModelError(f"{where}: id2label is {quoted(table)}; expected class numbers 0, 1, … -> names")
    by_number = {str(k): str(v) for k, v in table.items()}
    return tuple(by_number[str(i)] for i in range(len(by_number)))


def _threshold(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ModelError(
            f"{where}: thinbert.no_answer_threshold is {quoted(value)}; expected a probability from 0 to 1"
        )
    return float(value)


def _calibration(value: object, where: str) -> tuple[float, float]:
    if value is None:
        return 1.0, 0.0
    numbers = (
        [v for v in value if type(v) in (int, float) and abs(v) < sys.float_info.max] if isinstance(value, list) else []
    )
    if len(numbers) != 2 or len(numbers) != len(value) or numbers[0] <= 0:  # type: ignore[arg-type]
        raise ModelError(
            f"{where}: thinbert.no_answer_calibration is {quoted(value)}; expected [slope above 0, offset]"
        )
    return float(numbers[0]), float(numbers[1])
