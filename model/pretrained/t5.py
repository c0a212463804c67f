"""T5 (Raffel et al. 2020), its version 1.1 (Shazeer 2020; gated, untied) and mT5 (Xue et al. 2021)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from model.config import TransformerConfig
from model.layers import GATED
from model.pretrained.names import (
    TABLE,
    VECTOR,
    Family,
    Rule,
    activation,
    linear,
    official_activation,
    require,
)

CLASSES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
FEED_FORWARD = {"t5": "relu", "mt5": "gated-gelu"}  # where config.json has no feed_forward_proj


def to_config(model_type: str, official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    require(official, is_encoder_decoder=True, is_decoder=False)
    dropout_rate = official.get("dropout_rate", 0.1)
    return TransformerConfig(
        stack="encoder_decoder",
        vocab_size=official["vocab_size"],
        num_layers=official.get("num_decoder_layers") or official["num_layers"],
        num_encoder_layers=official["num_layers"],
        embed_dim=official["d_model"],
        num_heads=official["num_heads"],
        head_dim=official["d_kv"],
        mlp_dim=official["d_ff"],
        max_length=official.get("n_positions", 512),
        activation=_activation(official.get("feed_forward_proj", FEED_FORWARD[model_type])),
        positions="t5_relative",
        relative_buckets=official.get("relative_attention_num_buckets", 32),
        relative_max_distance=official.get("relative_attention_max_distance", 128),
        attention_scale=1.0,
        norm="rms",
        norm_epsilon=official.get("layer_norm_epsilon", 1e-6),
        use_bias=False,
        # The official loader ties the output to the embeddings unless the file has another one, whatever
        # tie_word_embeddings says; the field tells, in files older than scale_decoder_outputs, version 1.0 from 1.1.
        tie_embeddings="lm_head.weight" not in names,
        scale_logits=model_type == "t5"
        and official.get("scale_decoder_outputs", official.get("tie_word_embeddings") is not False),
        decoder_start_id=official.get("decoder_start_token_id", official.get("pad_token_id", 0)),
        dropout_rate=dropout_rate,
        attention_dropout_rate=dropout_rate,
        activation_dropout_rate=dropout_rate,
        initializer="fan_in",
    )


def _activation(feed_forward: str) -> str:
    gate, _, name = feed_forward.rpartition("-")
    require({"feed_forward_proj": feed_forward}, feed_forward_proj=(name, f"gated-{name}"))
    if feed_forward == "gated-gelu":  # by that name the authors mean the tanh approximation
        name = "gelu_new"
    return activation(name, gated=gate == "gated")


def from_config(model_type: str, config: TransformerConfig) -> dict[str, Any]:
    name = official_activation(config.activation)
    gated = "gated-gelu" if config.activation == "geglu" else f"gated-{name}"
    fields = dict(
        model_type=model_type,
        architectures=[CLASSES[model_type]],
        is_encoder_decoder=True,
        vocab_size=config.vocab_size,
        num_layers=config.count_of_encoder_layers,
        num_decoder_layers=config.num_layers,
        d_model=config.embed_dim,
        num_heads=config.num_heads,
        d_kv=config.size_of_head,
        d_ff=config.size_of_mlp,
        n_positions=config.max_length,
        feed_forward_proj=gated if config.activation in GATED else name,
        relative_attention_num_buckets=config.relative_buckets,
        relative_attention_max_distance=config.relative_max_distance,
        layer_norm_epsilon=config.norm_epsilon,
        tie_word_embeddings=config.tie_embeddings,
        decoder_start_token_id=config.decoder_start_id,
        dropout_rate=config.dropout_rate,
    )
    return fields | ({"scale_decoder_outputs": config.scale_logits} if model_type == "t5" else {})


def rules(config: TransformerConfig) -> tuple[Rule, ...]:
    return (
        Rule("shared.weight", "token_embedding/embedding", TABLE),
        *_stack_rules("encoder", ("SelfAttention", "DenseReluDense"), config),
        *_stack_rules("decoder", ("SelfAttention", "EncDecAttention", "DenseReluDense"), config),
        linear("lm_head", "head")[0],
    )


def _stack_rules(stack: str, sublayers: tuple[str, ...], config: TransformerConfig) -> tuple[Rule, ...]:
    """One stack's rules; `sublayers` are numbered in their order. Nothing has a bias."""
    ours = {"SelfAttention": "self_attention", "EncDecAttention": "cross_attention", "DenseReluDense": "feed_forward"}
    attention = {"q": "query", "k": "key", "v": "value", "o": "out"}
    feed_forward = {"wi_0": "gate", "wi_1": "up"} if config.activation in GATED else {"wi": "up"}
    feed_forward["wo"] = "down"
    first = f"{stack}.block.0.layer.0.SelfAttention"
    found = [Rule(f"{first}.relative_attention_bias.weight", f"{stack}/relative_bias", TABLE)]
    for number, name in enumerate(sublayers):
        place = f"{stack}.block.{{layer}}.layer.{number}"
        for tensor, leaf in (feed_forward if name == "DenseReluDense" else attention).items():
            found.append(linear(f"{place}.{name}.{tensor}", f"{stack}/layers/{ours[name]}/{leaf}")[0])
        found.append(Rule(f"{place}.layer_norm.weight", f"{stack}/layers/{ours[name]}_norm/scale", VECTOR))
    return (*found, Rule(f"{stack}.final_layer_norm.weight", f"{stack}/final_norm/scale", VECTOR))


FAMILIES = tuple(
    Family(
        model_type=model_type,
        to_config=partial(to_config, model_type),
        from_config=partial(from_config, model_type),
        rules=rules,
        aliases=lambda config: {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
        # Written by early conversions; no model has read it.
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )
    for model_type in ("t5", "mt5")
)
