"""Llama (Touvron et al. 2023) and its kin: Mistral and Mixtral (Jiang et al. 2023, 2024), Qwen 2 and 3 (2024, 2025)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from model.config import TransformerConfig
from model.pretrained.names import (
    LINEAR,
    TABLE,
    Family,
    PretrainedError,
    Rule,
    activation,
    linear,
    norm,
    official_activation,
    require,
)
from model.pretrained.rotary import read_rotary, write_rotary

FULL, SLIDING = "full_attention", "sliding_attention"

# What config.json may leave out, by model type.
_SHARED = dict(
    num_key_value_heads=None,
    head_dim=None,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    attention_bias=False,
    attention_dropout=0.0,
    initializer_range=0.02,
    tie_word_embeddings=False,
)
LLAMA = _SHARED | dict(mlp_bias=False, max_position_embeddings=2048)
MISTRAL = _SHARED | dict(num_key_value_heads=8, sliding_window=4096, max_position_embeddings=131072)
MIXTRAL = MISTRAL | dict(
    rms_norm_eps=1e-5, sliding_window=None, num_experts_per_tok=2, num_local_experts=8, router_aux_loss_coef=0.001
)
QWEN2 = _SHARED | dict(
    num_key_value_heads=32,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
    max_position_embeddings=32768,
)
QWEN3 = QWEN2 | dict(head_dim=128)


def decoder_fields(official: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our config that Llama and its successors call alike, rotary positions and activation apart."""
    return dict(
        stack="decoder",
        vocab_size=official["vocab_size"],
        num_layers=official["num_hidden_layers"],
        embed_dim=official["hidden_size"],
        num_heads=official["num_attention_heads"],
        num_kv_heads=official["num_key_value_heads"],
        head_dim=official["head_dim"],
        mlp_dim=official["intermediate_size"],
        max_length=official["max_position_embeddings"],
        positions="rotary",
        norm="rms",
        norm_epsilon=official["rms_norm_eps"],
        use_bias=False,
        attention_bias="all" if official["attention_bias"] else "none",
        tie_embeddings=official["tie_word_embeddings"],
        attention_dropout_rate=official["attention_dropout"],
        init_stddev=official["initializer_range"],
        scale_residual_init=False,
    )


def official_decoder_fields(config: TransformerConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """The same, the other way. A `head_dim` that the classes of Llama's kin derive is left out."""
    return dict(
        **{} if config.head_dim is None else dict(head_dim=config.head_dim),
        model_type=model_type,
        architectures=[architecture],
        vocab_size=config.vocab_size,
        num_hidden_layers=config.num_layers,
        hidden_size=config.embed_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.count_of_kv_heads,
        intermediate_size=config.size_of_mlp,
        max_position_embeddings=config.max_length,
        rms_norm_eps=config.norm_epsilon,
        attention_bias=config.biased_attention == "all",
        tie_word_embeddings=config.tie_embeddings,
        attention_dropout=config.attention_dropout_rate,
        initializer_range=config.init_stddev,
    )


def check_heads_divide(config: TransformerConfig) -> None:
    """Some official classes want heads that divide the width, although `head_dim` makes that needless."""
    if config.embed_dim % config.num_heads:
        raise PretrainedError(f"num_heads={config.num_heads}, which does not divide embed_dim={config.embed_dim}")


def read_windows(kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """Our fields of the sliding window, from the kind of each layer's attention."""
    is_full = [kind == FULL for kind in kinds]
    if all(is_full):
        return {}
    if window is None:
        raise PretrainedError("config.json: layer_types has sliding_attention, but there is no sliding_window")
    for every in range(2, len(kinds) + 2):
        regular = [FULL if (i + 1) % every == 0 else SLIDING for i in range(len(kinds))]
        if regular == list(kinds):
            return dict(sliding_window=window, global_every=every if any(is_full) else None)
    raise PretrainedError(
        f"config.json: layer_types={list(kinds)} is not supported, only the same in all layers or full_attention in "
        "every n-th"
    )


def write_windows(config: TransformerConfig) -> dict[str, Any]:
    """The kind of each layer's attention, and the window where there is one."""
    if not config.sliding_window:
        return dict(layer_types=[FULL] * config.num_layers)
    every = config.global_every or config.num_layers + 1
    kinds = [FULL if (i + 1) % every == 0 else SLIDING for i in range(config.num_layers)]
    return dict(layer_types=kinds, sliding_window=config.sliding_window)


def decoder_rules(norms: Mapping[str, str], feed_forward: Sequence[Rule]) -> tuple[Rule, ...]:
    """The table of Llama and its successors; `norms`: ends of the official names → ours."""
    layer, ours = "model.layers.{layer}", "decoder/layers"
    return (
        Rule("model.embed_tokens.weight", "token_embedding/embedding", TABLE),
        *linear(f"{layer}.self_attn.q_proj", f"{ours}/self_attention/query"),
        *linear(f"{layer}.self_attn.k_proj", f"{ours}/self_attention/key"),
        *linear(f"{layer}.self_attn.v_proj", f"{ours}/self_attention/value"),
        *linear(f"{layer}.self_attn.o_proj", f"{ours}/self_attention/out"),
        *norm(f"{layer}.self_attn.q_norm", f"{ours}/self_attention/query_norm"),
        *norm(f"{layer}.self_attn.k_norm", f"{ours}/self_attention/key_norm"),
        *feed_forward,
        *(rule for official, name in norms.items() for rule in norm(f"{layer}.{official}", f"{ours}/{name}")),
        *norm("model.norm", "decoder/final_norm"),
        Rule("lm_head.weight", "head/kernel", LINEAR),
    )


def gated_rules(
    official: str = "model.layers.{layer}.mlp", names: Sequence[str] = ("up_proj", "gate_proj", "down_proj")
):
    """Rules of a gated feed-forward; `names` of up, gate and down."""
    ours = [f"decoder/layers/feed_forward/{name}" for name in ("up", "gate", "down")]
    return [rule for theirs, name in zip(names, ours, strict=True) for rule in linear(f"{official}.{theirs}", name)]


NORMS = {"input_layernorm": "self_attention_norm", "post_attention_layernorm": "feed_forward_norm"}


def dense_rules(config: TransformerConfig) -> tuple[Rule, ...]:
    return decoder_rules(NORMS, gated_rules())


def aliases(config: TransformerConfig) -> dict[str, str]:
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}


# Llama -----------------------------------------------------------------------------------------------------


def llama_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = LLAMA | dict(official)
    return TransformerConfig(
        **decoder_fields(official)
        | read_rotary(official, 10_000.0)
        | dict(activation=activation(official["hidden_act"], gated=True), use_bias=official["mlp_bias"])
    )


def llama_from_config(config: TransformerConfig) -> dict[str, Any]:
    check_heads_divide(config)
    return (
        official_decoder_fields(config, "llama", "LlamaForCausalLM")
        | write_rotary(config)
        | dict(hidden_act=official_activation(config.activation), mlp_bias=config.use_bias)
    )


# Mistral and Mixtral ---------------------------------------------------------------------------------------


def mistral_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = MISTRAL | dict(official)
    require(official, attention_bias=False, layer_types=None)
    return TransformerConfig(
        **decoder_fields(official),
        **read_rotary(official, 10_000.0),
        activation=activation(official["hidden_act"], gated=True),
        sliding_window=official["sliding_window"],
    )


def mistral_from_config(config: TransformerConfig) -> dict[str, Any]:
    fields = official_decoder_fields(config, "mistral", "MistralForCausalLM") | write_rotary(config)
    del fields["attention_bias"]
    return fields | dict(hidden_act=official_activation(config.activation), sliding_window=config.sliding_window)


def mixtral_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    official = MIXTRAL | dict(official)
    require(official, router_jitter_noise=0.0)
    dense = mistral_to_config({"rope_theta": 1_000_000.0} | official, names)
    experts = dict(
        num_experts=official["num_local_experts"],
        experts_per_token=official["num_experts_per_tok"],
        load_balance_weight=official["router_aux_loss_coef"],
        router_z_weight=0.0,
    )
    return TransformerConfig.model_validate(dense.model_dump() | experts)


def mixtral_from_config(config: TransformerConfig) -> dict[str, Any]:
    if config.num_experts is None:
        raise PretrainedError("num_experts=None, where the family has a mixture")
    return mistral_from_config(config) | dict(
        model_type="mixtral",
        architectures=["MixtralForCausalLM"],
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token,
        router_aux_loss_coef=config.load_balance_weight,
    )


def mixtral_rules(config: TransformerConfig) -> tuple[Rule, ...]:
    mixture = "model.layers.{layer}.block_sparse_moe"
    router = linear(f"{mixture}.gate", "decoder/layers/feed_forward/router")
    return decoder_rules(NORMS, [*router, *gated_rules(f"{mixture}.experts.{{expert}}", ("w3", "w1", "w2"))])


# Qwen ------------------------------------------------------------------------------------------------------


def _qwen_fields(official: Mapping[str, Any]) -> dict[str, Any]:
    window = official["sliding_window"] if official["use_sliding_window"] else None
    first = official["max_window_layers"] if window else official["num_hidden_layers"]
    kinds = [SLIDING if i >= first else FULL for i in range(official["num_hidden_layers"])]
    return (
        decoder_fields(official)
        | read_rotary(official, 10_000.0)
        | read_windows(official["layer_types"] or kinds, window)
        | dict(activation=activation(official["hidden_act"], gated=True))
    )


def _official_qwen_fields(config: TransformerConfig, model_type: str, architecture: str) -> dict[str, Any]:
    return (
        official_decoder_fields(config, model_type, architecture)
        | write_rotary(config)
        | write_windows(config)
        | dict(
            hidden_act=official_activation(config.activation),
            use_sliding_window=config.sliding_window is not None,
        )
    )


def qwen2_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    fields = _qwen_fields(QWEN2 | dict(official))
    return TransformerConfig(**fields | dict(attention_bias="qkv"))


def qwen2_from_config(config: TransformerConfig) -> dict[str, Any]:
    fields = _official_qwen_fields(config, "qwen2", "Qwen2ForCausalLM")
    del fields["attention_bias"]
    return fields


def qwen3_to_config(official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    return TransformerConfig(**_qwen_fields(QWEN3 | dict(official)), query_key_norm=True)


def qwen3_from_config(config: TransformerConfig) -> dict[str, Any]:
    return _official_qwen_fields(config, "qwen3", "Qwen3ForCausalLM") | dict(head_dim=config.size_of_head)


def _family(model_type, to_config, from_config, rules=dense_rules) -> Family:
    ignored = (r".*\.rotary_emb\.inv_freq",)
    return Family(model_type, to_config, from_config, rules, prefix="model.", aliases=aliases, ignored=ignored)


FAMILIES = (
    _family("llama", llama_to_config, llama_from_config),
    _family("mistral", mistral_to_config, mistral_from_config),
    _family("mixtral", mixtral_to_config, mixtral_from_config, mixtral_rules),
    _family("qwen2", qwen2_to_config, qwen2_from_config),
    _family("qwen3", qwen3_to_config, qwen3_from_config),
)
