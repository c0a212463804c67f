"""Rotary positions in config.json: `rope_theta` and `rope_scaling`, or since version 5 `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model.config import (
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    RotaryScaling,
    TransformerConfig,
    Unscaled,
    YaRNScaling,
)
from model.pretrained.names import PretrainedError, require


def read_rotary(official: Mapping[str, Any], default_base: float) -> dict[str, Any]:
    """Our fields `rotary_base` and `rotary_scaling`; what older files say beside `rope_parameters` comes first."""
    require(official, partial_rotary_factor=(None, 1.0))
    rope = official.get("rope_scaling") or official.get("rope_parameters") or {}
    base = rope.get("rope_theta", official.get("rope_theta", default_base))
    return dict(rotary_base=base, rotary_scaling=read_scaling(rope, official))


def read_scaling(rope: Mapping[str, Any], official: Mapping[str, Any]) -> RotaryScaling:
    """The scaling that one set of rotary parameters describes; lengths it omits are those of the whole config."""
    require(rope, partial_rotary_factor=(None, 1.0))
    length = official["max_position_embeddings"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return Unscaled()
    if kind == "linear":
        return LinearScaling(factor=rope["factor"])
    if kind == "dynamic":
        return NTKScaling(factor=rope["factor"], original_length=length)
    original = official.get("original_max_position_embeddings", rope.get("original_max_position_embeddings", length))
    if kind == "yarn":
        return _read_yarn(rope, length, original)
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        return Llama3Scaling(
            factor=rope["factor"], low_freq_factor=low, high_freq_factor=high, original_length=original
        )
    raise PretrainedError(
        f"config.json: rope_type={kind!r} is not supported, only default, linear, dynamic, yarn and llama3"
    )


def _read_yarn(rope: Mapping[str, Any], length: int, original: int) -> YaRNScaling:
    factor = rope.get("factor") or length / original
    attention_factor = rope.get("attention_factor")
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    if attention_factor is None and over and under:  # DeepSeek's way of writing it
        attention_factor = (0.1 * over * math.log(factor) + 1.0) / (0.1 * under * math.log(factor) + 1.0)
    return YaRNScaling(
        factor=factor,
        original_length=original,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        attention_factor=attention_factor,
        truncate=rope.get("truncate", True),
    )


def write_rotary(config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `read_rotary`, in the old spelling and in the new one, for readers of either."""
    scaling = write_scaling(config.rotary_scaling)
    return dict(
        rope_theta=config.rotary_base,
        rope_scaling=scaling,
        rope_parameters=dict(rope_theta=config.rotary_base, **scaling or dict(rope_type="default")),
    )


def write_scaling(scaling: RotaryScaling) -> dict[str, Any] | None:
    """The inverse of `read_scaling`; None without a scaling. NTK's original length is that of the whole config."""
    match scaling:
        case Unscaled():
            return None
        case LinearScaling():
            return dict(rope_type="linear", factor=scaling.factor)
        case NTKScaling():
            return dict(rope_type="dynamic", factor=scaling.factor)
        case _:
            fields = scaling.model_dump(exclude={"kind", "original_length"}, exclude_none=True)
            return dict(rope_type=scaling.kind, original_max_position_embeddings=scaling.original_length, **fields)
