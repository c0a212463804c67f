"""ELECTRA (Clark et al. 2020): the generator (a masked LM) and the discriminator are two models of one family."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model.config import TransformerConfig
from model.pretrained.bert import (
    class_name,
    embedding_rules,
    encoder_family,
    encoder_fields,
    label_heads,
    labelling,
    layer_rules,
    official_encoder_fields,
    require_gelu,
)
from model.pretrained.names import LINEAR, VECTOR, Rule, linear, norm, require


def to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    fields = encoder_fields(official)
    heads = ("lm",) * ("generator_lm_head.bias" in names) + ("span",) * ("qa_outputs.weight" in names)
    heads += ("detection",) * ("discriminator_predictions.dense.weight" in names)
    if "classifier.weight" in names:
        heads += label_heads(official)
    if "classifier.dense.weight" in names:
        heads += ("sequence",)
    require_gelu(fields, heads)
    width = official.get("embedding_size", 128)
    return TransformerConfig(
        **fields,
        embedding_dim=None if width == fields["embed_dim"] else width,
        heads=heads,
        pooler=_pooler(official, heads),
    )


def _pooler(official: Mapping[str, Any], heads: tuple[str, ...]) -> str:
    """The activation of the dense layer over the first token, which the config names for a multiple choice only."""
    if "choice" not in heads:
        return "gelu" if "sequence" in heads else "none"
    require(official, summary_type="first", summary_use_proj=True, summary_activation=("gelu", "tanh", "relu"))
    require(official, summary_proj_to_labels=False)
    return official.get("summary_activation", "gelu")


def from_config(config: TransformerConfig) -> dict[str, Any]:
    return dict(
        model_type="electra",
        architectures=[class_name("Electra", config.heads)],
        **official_encoder_fields(config),
        embedding_size=config.size_of_embedding,
        **dict(summary_activation=config.pooler) if "choice" in config.heads else {},
    )


def rules(config: TransformerConfig) -> tuple[Rule, ...]:
    is_sequence = "sequence" in config.heads
    return (
        *embedding_rules("electra."),
        *linear("electra.embeddings_project", "encoder/embedding_projection"),
        *layer_rules("electra."),
        *linear("generator_predictions.dense", "head/transform"),
        *norm("generator_predictions.LayerNorm", "head/norm"),
        Rule("generator_lm_head.weight", "head/kernel", LINEAR),
        Rule("generator_lm_head.bias", "head/bias", VECTOR),
        *linear("discriminator_predictions.dense", "heads/detection_dense"),
        *linear("discriminator_predictions.dense_prediction", "heads/detection"),
        *linear("classifier.dense" if is_sequence else "sequence_summary.summary", "heads/pooler"),
        *linear("classifier.out_proj" if is_sequence else "classifier", f"heads/{labelling(config)}"),
        *linear("qa_outputs", "heads/span"),
    )


def aliases(config: TransformerConfig) -> dict[str, str]:
    table = "electra.embeddings.word_embeddings.weight"
    return {"generator_lm_head.weight": table} if config.tie_embeddings else {}


FAMILIES = (encoder_family("electra", to_config, from_config, rules, aliases),)
