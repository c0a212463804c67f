"""Gemma 1, 2 and 3 (Gemma Team 2024, 2024, 2025); of Gemma 3 the text model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model.config import TransformerConfig, Unscaled
from model.pretrained.llama import (
    FULL,
    SLIDING,
    aliases,
    check_heads_divide,
    decoder_fields,
    decoder_rules,
    dense_rules,
    gated_rules,
    official_decoder_fields,
    read_windows,
    write_windows,
)
from model.pretrained.names import Family, PretrainedError, Rule, activation, official_activation, require
from model.pretrained.rotary import read_rotary, read_scaling, write_rotary, write_scaling

# What config.json may leave out, by model type.
_SHARED = dict(
    head_dim=256,
    rms_norm_eps=1e-6,
    attention_bias=False,
    attention_dropout=0.0,
    initializer_range=0.02,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
)
GEMMA = _SHARED | dict(num_key_value_heads=16, hidden_act="gelu_pytorch_tanh")
GEMMA2 = _SHARED | dict(
    num_key_value_heads=4,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256,
    sliding_window=4096,
    sliding_window_pattern=2,
    layer_types=None,
    final_logit_softcapping=30.0,
    attn_logit_softcapping=50.0,
)
GEMMA3 = GEMMA2 | dict(
    vocab_size=262_208,
    max_position_embeddings=131_072,
    sliding_window_pattern=6,
    final_logit_softcapping=None,
    attn_logit_softcapping=None,
)
GLOBAL_BASE, LOCAL_BASE = 1_000_000.0, 10_000.0

# What all Gemmas have and Llama has not.
GEMMA_FIELDS = dict(norm_zero_centered=True, scale_embeddings=True)


def official_gate(ours: str) -> str:
    """The name under which Gemma knows an activation."""
    return "gelu_pytorch_tanh" if ours == "geglu" else official_activation(ours)


# Gemma -----------------------------------------------------------------------------------------------------


def gemma_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = GEMMA | dict(official)
    require(official, use_bidirectional_attention=(None, False))
    # The first files say gelu where the authors' code has the tanh approximation.
    name = "gelu_pytorch_tanh" if official["hidden_act"] == "gelu" else official["hidden_act"]
    return TransformerConfig(
        **decoder_fields(official),
        **read_rotary(official, 10_000.0),
        **GEMMA_FIELDS,
        activation=activation(name, gated=True),
    )


def gemma_from_config(config: TransformerConfig) -> dict[str, Any]:
    fields = official_decoder_fields(config, "gemma", "GemmaForCausalLM") | write_rotary(config)
    return fields | dict(head_dim=config.size_of_head, hidden_act=official_gate(config.activation))


# Gemma 2 and 3 ---------------------------------------------------------------------------------------------


def _gemma2_fields(official: Mapping[str, Any]) -> dict[str, Any]:
    require(official, use_bidirectional_attention=(None, False))
    every = official["sliding_window_pattern"]
    kinds = [SLIDING if (i + 1) % every else FULL for i in range(official["num_hidden_layers"])]
    return (
        decoder_fields(official)
        | GEMMA_FIELDS
        | read_windows(official["layer_types"] or kinds, official["sliding_window"])
        | dict(
            norm_placement="peri",
            activation=activation(official["hidden_activation"], gated=True),
            attention_scale=official["query_pre_attn_scalar"] ** -0.5,
            attention_logit_cap=official["attn_logit_softcapping"],
            logit_cap=official["final_logit_softcapping"],
        )
    )


def _official_gemma2_fields(config: TransformerConfig, model_type: str, architecture: str) -> dict[str, Any]:
    check_heads_divide(config)
    scale = config.attention_scale or config.size_of_head**-0.5
    return official_decoder_fields(config, model_type, architecture) | dict(
        **write_windows(config),
        head_dim=config.size_of_head,
        hidden_activation=official_gate(config.activation),
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=config.attention_logit_cap,
        final_logit_softcapping=config.logit_cap,
    )


def gemma2_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = GEMMA2 | dict(official)
    return TransformerConfig(**_gemma2_fields(official), **read_rotary(official, 10_000.0))


def gemma2_from_config(config: TransformerConfig) -> dict[str, Any]:
    return _official_gemma2_fields(config, "gemma2", "Gemma2ForCausalLM") | write_rotary(config)


def gemma3_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = GEMMA3 | dict(official)
    require(official, attn_logit_softcapping=None)
    fields = _gemma2_fields(official) | dict(query_key_norm=True)
    rope = official.get("rope_parameters") or {}
    full = (rope.get(FULL) or {}) | (official.get("rope_scaling") or {})
    base = full.get("rope_theta", official.get("rope_theta", GLOBAL_BASE))
    sliding = rope.get(SLIDING) or {}
    local_base = sliding.get("rope_theta", official.get("rope_local_base_freq", LOCAL_BASE))
    scaling, local_scaling = read_scaling(full, official), read_scaling(sliding, official)
    if "sliding_window" in fields and local_scaling != Unscaled():
        raise PretrainedError("config.json: only full_attention may have a rope_type other than default")
    if fields.get("global_every"):
        fields |= dict(rotary_base=base, rotary_scaling=scaling, local_rotary_base=local_base)
    elif "sliding_window" in fields:  # a model without a full layer
        fields |= dict(rotary_base=local_base)
    else:
        fields |= dict(rotary_base=base, rotary_scaling=scaling)
    return TransformerConfig(**fields)


def gemma3_from_config(config: TransformerConfig) -> dict[str, Any]:
    base, local_base = config.rotary_base, config.local_rotary_base or LOCAL_BASE
    if config.sliding_window and not config.global_every:
        base, local_base = GLOBAL_BASE, config.rotary_base
    scaling = write_scaling(config.rotary_scaling)
    return _official_gemma2_fields(config, "gemma3_text", "Gemma3ForCausalLM") | dict(
        rope_theta=base,
        rope_local_base_freq=local_base,
        rope_scaling=scaling,
        rope_parameters={
            FULL: dict(rope_theta=base, **scaling or dict(rope_type="default")),
            SLIDING: dict(rope_theta=local_base, rope_type="default"),
        },
    )


def peri_rules(config: TransformerConfig) -> tuple[Rule, ...]:
    norms = dict(
        input_layernorm="self_attention_norm",
        post_attention_layernorm="self_attention_post_norm",
        pre_feedforward_layernorm="feed_forward_norm",
        post_feedforward_layernorm="feed_forward_post_norm",
    )
    return decoder_rules(norms, gated_rules())


FAMILIES = tuple(
    Family(model_type, to_config, from_config, rules, prefix="model.", aliases=aliases)
    for model_type, to_config, from_config, rules in (
        ("gemma", gemma_to_config, gemma_from_config, dense_rules),
        ("gemma2", gemma2_to_config, gemma2_from_config, peri_rules),
        ("gemma3_text", gemma3_to_config, gemma3_from_config, peri_rules),
    )
)
