"""BART (Lewis et al. 2020), PEGASUS (Zhang et al. 2020) and the translators of Marian (Junczys-Dowmunt et al. 2018).

One encoder–decoder, whose three kinds differ in positions and in where the norms are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from model.config import TransformerConfig
from model.pretrained.names import (
    ROW,
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

STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class Kind:
    """What tells one of the three from the others: our fields, its class with a head, and fields it leaves out."""

    fields: Mapping[str, Any]
    class_name: str
    bare_class_name: str
    decoder_start_id: int
    fixed: Mapping[str, bool]
    """What config.json said of the same mechanisms until these had classes of their own."""


KINDS = {
    "bart": Kind(
        dict(positions="learned", position_offset=2, embedding_norm=True, norm_placement="post"),
        "BartForConditionalGeneration",
        "BartModel",
        decoder_start_id=2,
        fixed=dict(normalize_before=False, normalize_embedding=True, static_position_embeddings=False),
    ),
    "pegasus": Kind(
        dict(positions="sinusoidal", norm_placement="pre"),
        "PegasusForConditionalGeneration",
        "PegasusModel",
        decoder_start_id=0,
        fixed=dict(normalize_before=True, normalize_embedding=False, static_position_embeddings=True),
    ),
    "marian": Kind(
        dict(positions="sinusoidal", norm_placement="post"),
        "MarianMTModel",
        "MarianModel",
        decoder_start_id=58100,
        fixed=dict(normalize_before=False, normalize_embedding=False, static_position_embeddings=True),
    ),
}


def to_config(kind: Kind, official: Mapping[str, Any], names: Collection[str]) -> TransformerConfig:
    require(official, is_encoder_decoder=True, is_decoder=False, **kind.fixed)
    require(official, decoder_vocab_size=(None, official["vocab_size"]))
    for field in ("attention_heads", "ffn_dim"):
        one, other = official[f"encoder_{field}"], official[f"decoder_{field}"]
        if one != other:
            raise PretrainedError(f"config.json: encoder_{field}={one} beside decoder_{field}={other} is not supported")
    is_tied = official.get("tie_word_embeddings", True)
    if kind is KINDS["marian"] and not is_tied:  # a shared table would be read by nothing
        require({"share_encoder_decoder_embeddings": True} | dict(official), share_encoder_decoder_embeddings=False)
    return TransformerConfig(
        stack="encoder_decoder",
        vocab_size=official["vocab_size"],
        num_layers=official["decoder_layers"],
        num_encoder_layers=official["encoder_layers"],
        embed_dim=official["d_model"],
        num_heads=official["encoder_attention_heads"],
        mlp_dim=official["encoder_ffn_dim"],
        max_length=official.get("max_position_embeddings", 1024),
        activation=activation(official.get("activation_function", "gelu")),
        **kind.fields,
        share_embeddings=is_tied and official.get("share_encoder_decoder_embeddings", True),
        tie_embeddings=is_tied,
        head_bias="final_logits_bias" in names,
        scale_embeddings=official.get("scale_embedding", False),
        decoder_start_id=official.get("decoder_start_token_id", kind.decoder_start_id),
        dropout_rate=official.get("dropout", 0.1),
        attention_dropout_rate=official.get("attention_dropout", 0.0),
        activation_dropout_rate=official.get("activation_dropout", 0.0),
        init_stddev=official.get("init_std", 0.02),
        position_init_stddev=official.get("init_std", 0.02),
        scale_residual_init=False,
    )


def from_config(model_type: str, config: TransformerConfig) -> dict[str, Any]:
    kind = KINDS[model_type]
    fields = dict(
        model_type=model_type,
        architectures=[kind.bare_class_name if is_bare(config) else kind.class_name],
        is_encoder_decoder=True,
        vocab_size=config.vocab_size,
        decoder_layers=config.num_layers,
        encoder_layers=config.count_of_encoder_layers,
        d_model=config.embed_dim,
        max_position_embeddings=config.max_length,
        activation_function=official_activation(config.activation),
        tie_word_embeddings=config.tie_embeddings,
        scale_embedding=config.scale_embeddings,
        decoder_start_token_id=config.decoder_start_id,
        dropout=config.dropout_rate,
        attention_dropout=config.attention_dropout_rate,
        activation_dropout=config.activation_dropout_rate,
        init_std=config.init_stddev,
    )
    for stack in STACKS:
        fields |= {f"{stack}_attention_heads": config.num_heads, f"{stack}_ffn_dim": config.size_of_mlp}
    if model_type == "marian":
        if config.decoder_start_id is None:
            raise PretrainedError("decoder_start_id=None, where a Marian model names the token")
        fields |= dict(decoder_vocab_size=config.vocab_size, share_encoder_decoder_embeddings=config.share_embeddings)
    return fields


def is_bare(config: TransformerConfig) -> bool:
    """The headless class holds all that a tied output without a bias needs."""
    return config.tie_embeddings and not config.head_bias


def rules(model_type: str, config: TransformerConfig) -> tuple[Rule, ...]:
    return (
        *_embedding_rules(model_type, config),
        *_stack_rules("encoder", {"self_attn": "self_attention"}),
        *_stack_rules("decoder", {"self_attn": "self_attention", "encoder_attn": "cross_attention"}),
        linear("lm_head", "head")[0],
        Rule("final_logits_bias", "head/bias", ROW),
    )


def _embedding_rules(model_type: str, config: TransformerConfig) -> tuple[Rule, ...]:
    shared = "model.shared.weight"
    if config.share_embeddings:
        return (Rule(shared, "token_embedding/embedding", TABLE),)
    encoder, decoder = (f"model.{stack}.embed_tokens.weight" for stack in STACKS)
    source = Rule(encoder, "encoder_token_embedding/embedding", TABLE)
    # The classes that always have a shared table keep it unread beside the two; the rule after it has the last word.
    unread = () if model_type == "marian" else (Rule(shared, *source.leaves),)
    return (*unread, source, Rule(decoder, "token_embedding/embedding", TABLE))


def _stack_rules(stack: str, attentions: Mapping[str, str]) -> tuple[Rule, ...]:
    layer, ours = f"model.{stack}.layers.{{layer}}", f"{stack}/layers"
    found = [
        Rule(f"model.{stack}.embed_positions.weight", f"{stack}/position_embedding/embedding", TABLE),
        *norm(f"model.{stack}.layernorm_embedding", f"{stack}/embedding_norm"),
    ]
    for name, leaf in attentions.items():
        for tensor, part in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}.items():
            found += linear(f"{layer}.{name}.{tensor}", f"{ours}/{leaf}/{part}")
        found += norm(f"{layer}.{name}_layer_norm", f"{ours}/{leaf}_norm")
    return (
        *found,
        *linear(f"{layer}.fc1", f"{ours}/feed_forward/up"),
        *linear(f"{layer}.fc2", f"{ours}/feed_forward/down"),
        *norm(f"{layer}.final_layer_norm", f"{ours}/feed_forward_norm"),
        *norm(f"model.{stack}.layer_norm", f"{stack}/final_norm"),
    )


def aliases(config: TransformerConfig) -> dict[str, str]:
    tied = {}
    first = "model.shared.weight" if config.share_embeddings else "model.decoder.embed_tokens.weight"
    if config.share_embeddings:
        tied = {f"model.{stack}.embed_tokens.weight": first for stack in STACKS}
    return tied | ({"lm_head.weight": first} if config.tie_embeddings else {})


def position_tables(config: TransformerConfig) -> dict[str, np.ndarray]:
    """The sinusoids of `positions.sinusoidal`, which these models also store."""
    if config.positions != "sinusoidal":
        return {}
    half = config.embed_dim // 2
    angles = np.arange(config.max_length)[:, None] / 10_000 ** (np.arange(half) / half)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return {f"model.{stack}.embed_positions.weight": table for stack in STACKS}


FAMILIES = tuple(
    Family(
        model_type=model_type,
        to_config=partial(to_config, kind),
        from_config=partial(from_config, model_type),
        rules=partial(rules, model_type),
        prefix="model.",
        is_bare=is_bare,
        aliases=aliases,
        derived=position_tables,
        saves_derived=is_bare if model_type == "marian" else lambda config: True,
        # The table has a row for the padding token, which by default is beyond small vocabularies.
        defaults=lambda config: {"pad_token_id": config.decoder_start_id} if config.positions == "sinusoidal" else {},
        ignored=(r"model\.(en|de)coder\.version",),
    )
    for model_type, kind in KINDS.items()
)
