"""ALBERT (Lan et al. 2020): narrow tables, one block for all depths, sentence order in place of next sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model.config import TransformerConfig
from model.pretrained.bert import (
    POOLED,
    class_name,
    embedding_rules,
    encoder_family,
    encoder_fields,
    label_heads,
    labelling,
    official_encoder_fields,
    vocabulary_aliases,
    vocabulary_rules,
)
from model.pretrained.names import PretrainedError, Rule, linear, norm, require

DEFAULTS = dict(
    embedding_size=128,
    hidden_act="gelu_new",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    require(official, num_hidden_groups=1, inner_group_num=1)
    official = DEFAULTS | dict(official)
    heads = ("lm",) * ("predictions.bias" in names) + ("span",) * ("qa_outputs.weight" in names)
    heads += ("sentence_pair",) * ("sop_classifier.classifier.weight" in names)
    if "classifier.weight" in names:
        heads += label_heads(official)
    has_pooler = "albert.pooler.weight" in names or POOLED & set(heads)
    return TransformerConfig(
        **encoder_fields(official),
        embedding_dim=official["embedding_size"],
        share_layers=True,
        heads=heads,
        pooler="tanh" if has_pooler else "none",
    )


def from_config(config: TransformerConfig) -> dict[str, Any]:
    if config.heads == ("sentence_pair",):
        raise PretrainedError("ALBERT has the head sentence_pair only beside the head lm")
    return dict(
        model_type="albert",
        architectures=[class_name("Albert", config.heads)],
        **official_encoder_fields(config),
        embedding_size=config.size_of_embedding,
    )


def rules(config: TransformerConfig) -> tuple[Rule, ...]:
    layer, ours = "albert.encoder.albert_layer_groups.0.albert_layers.0", "encoder/layers"
    return (
        *embedding_rules("albert."),
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder/embedding_projection"),
        *linear(f"{layer}.attention.query", f"{ours}/self_attention/query"),
        *linear(f"{layer}.attention.key", f"{ours}/self_attention/key"),
        *linear(f"{layer}.attention.value", f"{ours}/self_attention/value"),
        *linear(f"{layer}.attention.dense", f"{ours}/self_attention/out"),
        *norm(f"{layer}.attention.LayerNorm", f"{ours}/self_attention_norm"),
        *linear(f"{layer}.ffn", f"{ours}/feed_forward/up"),
        *linear(f"{layer}.ffn_output", f"{ours}/feed_forward/down"),
        *norm(f"{layer}.full_layer_layer_norm", f"{ours}/feed_forward_norm"),
        *linear("albert.pooler", "heads/pooler"),
        *vocabulary_rules("predictions", "predictions.dense", "predictions.LayerNorm", config),
        *linear("sop_classifier.classifier", "heads/sentence_pair"),
        *linear("classifier", f"heads/{labelling(config)}"),
        *linear("qa_outputs", "heads/span"),
    )


def aliases(config: TransformerConfig) -> dict[str, str]:
    return vocabulary_aliases("predictions", "albert.embeddings.word_embeddings.weight", config)


FAMILIES = (encoder_family("albert", to_config, from_config, rules, aliases),)
