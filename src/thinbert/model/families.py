"""Tables of weight names, one per model family. Adding a family means adding a row to FAMILIES (see HACKING.md)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """How a family spells what every encoder here has. Names are relative to `prefix`; `{i}` is the layer number."""

    name: str
    model_types: tuple[str, ...]  # `model_type` values in config.json
    prefix: str  # of encoder tensors in a model with a head; absent in a bare encoder
    token_types: bool
    norm_eps_key: bool  # whether config.json sets the layer norms' eps; transformers fixes DistilBERT's
    config_keys: Mapping[str, str]  # BERT's config field -> this family's, where they differ
    embeddings: Mapping[str, str]  # field of Embeddings -> tensor (norm: stem of .weight and .bias)
    layer: Mapping[str, str]  # field of Layer -> stem of .weight and .bias
    span: str  # stem of the question-answering head
    classify_hidden: str  # stem of the first classification layer, full name
    classify_activation: str
    classify_out: str
    mlm_transform: str  # stem of the masked-language-model head's hidden layer, and
    mlm_norm: str  # of its norm
    mlm_bias: str  # of its output, whose matrix is the token embeddings
    nsp: str  # stem of the next-sentence head
    # Tensors under the prefix that change nothing thinbert computes. Those outside it are other tasks' heads anyway.
    ignorable: tuple[re.Pattern[str], ...] = field(default=())


BERT = Family(
    name="bert",
    model_types=("bert",),
    prefix="bert.",
    token_types=True,
    norm_eps_key=True,
    config_keys={},
    embeddings={
        "token": "embeddings.word_embeddings.weight",
        "position": "embeddings.position_embeddings.weight",
        "token_type": "embeddings.token_type_embeddings.weight",
        "norm": "embeddings.LayerNorm",
    },
    layer={
        "query": "encoder.layer.{i}.attention.self.query",
        "key": "encoder.layer.{i}.attention.self.key",
        "value": "encoder.layer.{i}.attention.self.value",
        "attention_output": "encoder.layer.{i}.attention.output.dense",
        "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
        "ffn_in": "encoder.layer.{i}.intermediate.dense",
        "ffn_out": "encoder.layer.{i}.output.dense",
        "ffn_norm": "encoder.layer.{i}.output.LayerNorm",
    },
    span="qa_outputs",
    classify_hidden="bert.pooler.dense",
    classify_activation="tanh",
    classify_out="classifier",
    mlm_transform="cls.predictions.transform.dense",
    mlm_norm="cls.predictions.transform.LayerNorm",
    mlm_bias="cls.predictions.bias",
    nsp="cls.seq_relationship",
    ignorable=(
        re.compile(r"bert\.embeddings\.(position_ids|token_type_ids)"),
        re.compile(r"bert\.pooler\.dense\.(weight|bias)"),  # unless a classifier reads it
    ),
)

DISTILBERT = Family(
    name="distilbert",
    model_types=("distilbert",),
    prefix="distilbert.",
    token_types=False,
    norm_eps_key=False,
    config_keys={
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    embeddings={
        "token": "embeddings.word_embeddings.weight",
        "position": "embeddings.position_embeddings.weight",
        "norm": "embeddings.LayerNorm",
    },
    layer={
        "query": "transformer.layer.{i}.attention.q_lin",
        "key": "transformer.layer.{i}.attention.k_lin",
        "value": "transformer.layer.{i}.attention.v_lin",
        "attention_output": "transformer.layer.{i}.attention.out_lin",
        "attention_norm": "transformer.layer.{i}.sa_layer_norm",
        "ffn_in": "transformer.layer.{i}.ffn.lin1",
        "ffn_out": "transformer.layer.{i}.ffn.lin2",
        "ffn_norm": "transformer.layer.{i}.output_layer_norm",
    },
    span="qa_outputs",
    classify_hidden="pre_classifier",
    classify_activation="relu",
    classify_out="classifier",
    mlm_transform="vocab_transform",
    mlm_norm="vocab_layer_norm",
    mlm_bias="vocab_projector.bias",
    nsp="seq_relationship",  # transformers has none for DistilBERT; this is ours
    ignorable=(re.compile(r"distilbert\.embeddings\.position_ids"),),
)

FAMILIES: Mapping[str, Family] = {f.name: f for f in (BERT, DISTILBERT)}


def modern_name(name: str, family: Family) -> str:
    """The present-day spelling of a tensor name: `gamma`/`beta` of the first BERT releases, and a missing prefix."""
    name = re.sub(r"(LayerNorm|layer_norm)\.gamma$", r"\1.weight", name)
    name = re.sub(r"(LayerNorm|layer_norm)\.beta$", r"\1.bias", name)
    bare = re.match(r"(embeddings|encoder|transformer|pooler)\.", name)
    return family.prefix + name if bare else name
