"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model.config import TransformerConfig
from model.pretrained.names import (
    CONV1D,
    LINEAR,
    TABLE,
    VECTOR,
    Family,
    Rule,
    activation,
    linear,
    norm,
    official_activation,
    require,
)

# What config.json may leave out.
DEFAULTS = dict(
    n_inner=None,
    activation_function="gelu_new",
    layer_norm_epsilon=1e-5,
    resid_pdrop=0.1,
    embd_pdrop=0.1,
    attn_pdrop=0.1,
    initializer_range=0.02,
    scale_attn_weights=True,
    tie_word_embeddings=True,
)


def to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = DEFAULTS | dict(official)
    require(official, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    require(official, embd_pdrop=official["resid_pdrop"])
    return TransformerConfig(
        stack="decoder",
        vocab_size=official["vocab_size"],
        num_layers=official["n_layer"],
        embed_dim=official["n_embd"],
        num_heads=official["n_head"],
        mlp_dim=official["n_inner"],
        max_length=official["n_positions"],
        activation=activation(official["activation_function"]),
        positions="learned",
        norm_epsilon=official["layer_norm_epsilon"],
        attention_scale=None if official["scale_attn_weights"] else 1.0,
        tie_embeddings=official["tie_word_embeddings"],
        dropout_rate=official["resid_pdrop"],
        attention_dropout_rate=official["attn_pdrop"],
        init_stddev=official["initializer_range"],
        scale_residual_init=True,
    )


def from_config(config: TransformerConfig) -> dict[str, Any]:
    return dict(
        model_type="gpt2",
        architectures=["GPT2LMHeadModel"],
        vocab_size=config.vocab_size,
        n_layer=config.num_layers,
        n_embd=config.embed_dim,
        n_head=config.num_heads,
        n_inner=config.mlp_dim,
        n_positions=config.max_length,
        activation_function=official_activation(config.activation),
        layer_norm_epsilon=config.norm_epsilon,
        scale_attn_weights=config.attention_scale != 1.0,
        tie_word_embeddings=config.tie_embeddings,
        resid_pdrop=config.dropout_rate,
        embd_pdrop=config.dropout_rate,
        attn_pdrop=config.attention_dropout_rate,
        initializer_range=config.init_stddev,
    )


def rules(config: TransformerConfig) -> tuple[Rule, ...]:
    layer, ours = "transformer.h.{layer}", "decoder/layers"
    attention = [f"{ours}/self_attention/{name}" for name in ("query", "key", "value")]
    return (
        Rule("transformer.wte.weight", "token_embedding/embedding", TABLE),
        Rule("transformer.wpe.weight", "decoder/position_embedding/embedding", TABLE),
        *norm(f"{layer}.ln_1", f"{ours}/self_attention_norm"),
        Rule(f"{layer}.attn.c_attn.weight", tuple(f"{name}/kernel" for name in attention), CONV1D),
        Rule(f"{layer}.attn.c_attn.bias", tuple(f"{name}/bias" for name in attention), VECTOR),
        *linear(f"{layer}.attn.c_proj", f"{ours}/self_attention/out", CONV1D),
        *norm(f"{layer}.ln_2", f"{ours}/feed_forward_norm"),
        *linear(f"{layer}.mlp.c_fc", f"{ours}/feed_forward/up", CONV1D),
        *linear(f"{layer}.mlp.c_proj", f"{ours}/feed_forward/down", CONV1D),
        *norm("transformer.ln_f", "decoder/final_norm"),
        Rule("lm_head.weight", "head/kernel", LINEAR),
    )


def aliases(config: TransformerConfig) -> dict[str, str]:
    return {"lm_head.weight": "transformer.wte.weight"} if config.tie_embeddings else {}


FAMILIES = (
    Family(
        model_type="gpt2",
        to_config=to_config,
        from_config=from_config,
        rules=rules,
        prefix="transformer.",
        aliases=aliases,
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),  # the causal mask, in old files
    ),
)
