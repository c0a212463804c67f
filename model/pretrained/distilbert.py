"""DistilBERT (Sanh et al. 2019): BERT with half the layers, without sentence types, under other names."""

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
)
from model.pretrained.names import LINEAR, VECTOR, Rule, linear, norm

# BERT's name of a field → DistilBERT's.
RENAMED = {
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
}
FIXED = dict(type_vocab_size=0, layer_norm_eps=1e-12)


def to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    heads = ("lm",) * ("vocab_projector.bias" in names) + ("span",) * ("qa_outputs.weight" in names)
    if "classifier.weight" in names:
        heads += label_heads(official)
    # A table of sinusoids is stored like a learned one.
    named = {ours: official[theirs] for ours, theirs in RENAMED.items() if theirs in official}
    return TransformerConfig(
        **encoder_fields(dict(official) | named | FIXED),
        heads=heads,
        pooler="relu" if POOLED & set(heads) else "none",
    )


def from_config(config: TransformerConfig) -> dict[str, Any]:
    fields = official_encoder_fields(config)
    return dict(
        model_type="distilbert",
        architectures=[class_name("DistilBert", config.heads)],
        **{RENAMED.get(name, name): value for name, value in fields.items() if name not in FIXED},
    )


def rules(config: TransformerConfig) -> tuple[Rule, ...]:
    layer, ours = "distilbert.transformer.layer.{layer}", "encoder/layers"
    return (
        *embedding_rules("distilbert."),
        *linear(f"{layer}.attention.q_lin", f"{ours}/self_attention/query"),
        *linear(f"{layer}.attention.k_lin", f"{ours}/self_attention/key"),
        *linear(f"{layer}.attention.v_lin", f"{ours}/self_attention/value"),
        *linear(f"{layer}.attention.out_lin", f"{ours}/self_attention/out"),
        *norm(f"{layer}.sa_layer_norm", f"{ours}/self_attention_norm"),
        *linear(f"{layer}.ffn.lin1", f"{ours}/feed_forward/up"),
        *linear(f"{layer}.ffn.lin2", f"{ours}/feed_forward/down"),
        *norm(f"{layer}.output_layer_norm", f"{ours}/feed_forward_norm"),
        *linear("vocab_transform", "head/transform"),
        *norm("vocab_layer_norm", "head/norm"),
        Rule("vocab_projector.weight", "head/kernel", LINEAR),
        Rule("vocab_projector.bias", "head/bias", VECTOR),
        *linear("pre_classifier", "heads/pooler"),
        *linear("classifier", f"heads/{labelling(config)}"),
        *linear("qa_outputs", "heads/span"),
    )


def aliases(config: TransformerConfig) -> dict[str, str]:
    table = "distilbert.embeddings.word_embeddings.weight"
    return {"vocab_projector.weight": table} if config.tie_embeddings else {}


FAMILIES = (encoder_family("distilbert", to_config, from_config, rules, aliases),)
