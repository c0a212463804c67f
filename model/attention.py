"""Multi-head, grouped-query and multi-query self-attention, with an explicit key/value cache."""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model import positions as pos
from model.config import TransformerConfig
from model.layers import Projection, residual_stddev


@flax.struct.dataclass
class AttentionInputs:
    """What all layers share: where each query stands and what it may see.

    `mask` is None when plain causality (and the sliding window) says it all: that keeps the fused kernels
    possible. `bias` is added to the logits before the softmax.
    """

    positions: Int[Array, "batch length"]
    mask: Bool[Array, "batch 1 query key"] | None = None
    bias: Float[Array, "#batch heads query key"] | None = None


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far; slot i holds position i.

    Arrays are [layers, batch, length, kv_heads, head_dim]; inside one layer the first dim is absent.
    """

    key: Array
    value: Array

    @classmethod
    def empty(cls, config: TransformerConfig, batch: int, length: int) -> KVCache:
        shape = (config.num_layers, batch, length, config.count_of_kv_heads, config.size_of_head)
        return cls(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    def write(self, key: Array, value: Array, positions: Int[Array, "batch length"]) -> KVCache:
        """One layer's cache with `key` and `value` [batch, length, kv_heads, head_dim] put at `positions`."""
        rows = jnp.arange(positions.shape[0])[:, None]
        return KVCache(
            self.key.at[rows, positions].set(key, mode="drop"), self.value.at[rows, positions].set(value, mode="drop")
        )


def attend(
    query: Float[Array, "batch query heads head_dim"],
    key: Float[Array, "batch key kv_heads head_dim"],
    value: Float[Array, "batch key kv_heads head_dim"],
    inputs: AttentionInputs,
    config: TransformerConfig,
    dropout_key: Array | None = None,
) -> Float[Array, "batch query heads head_dim"]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1); causal when `inputs.mask` is None."""
    if dropout_key is not None and config.attention_dropout_rate:
        return _attend_with_dropout(query, key, value, inputs, config, dropout_key)
    causal = inputs.mask is None
    window = (config.sliding_window - 1, 0) if causal and config.sliding_window else None
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=None if inputs.bias is None else inputs.bias.astype(query.dtype),
        mask=inputs.mask,
        is_causal=causal,
        local_window_size=window,
        implementation=_implementation(query, inputs, config),
    )


def _implementation(query: Array, inputs: AttentionInputs, config: TransformerConfig) -> str:
    """cuDNN's fused kernel where it is known to apply; an explicit mask or bias is faster through XLA."""
    if config.attention_implementation != "auto":
        return config.attention_implementation
    fused = (
        jax.default_backend() == "gpu"
        and query.dtype == jnp.bfloat16
        and inputs.mask is None
        and inputs.bias is None
        and query.shape[1] % 2 == 0
        and query.shape[3] % 8 == 0
        and query.shape[3] <= 128
    )
    return "cudnn" if fused else "xla"


def _attend_with_dropout(query, key, value, inputs, config, dropout_key):
    """The same formula written out, because the library's kernels do not drop attention weights."""
    batch, length, heads, head_dim = query.shape
    groups = heads // key.shape[2]
    query = query.reshape(batch, length, key.shape[2], groups, head_dim)
    logits = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=jnp.float32) / head_dim**0.5
    logits = logits.reshape(batch, heads, length, key.shape[1])
    if inputs.bias is not None:
        logits += inputs.bias
    mask = inputs.mask
    if mask is None:
        distance = jnp.arange(length)[:, None] - jnp.arange(key.shape[1])
        mask = (distance >= 0) & (distance < (config.sliding_window or length))
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min), axis=-1)
    keep = 1.0 - config.attention_dropout_rate
    weights = jnp.where(jax.random.bernoulli(dropout_key, keep, weights.shape), weights / keep, 0.0)
    weights = weights.astype(value.dtype).reshape(batch, key.shape[2], groups, length, key.shape[1])
    return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(batch, length, heads, head_dim)


class SelfAttention(nn.Module):
    """Projections around `attend`; returns the output and the layer's updated cache (None without one)."""

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], inputs: AttentionInputs, cache: KVCache | None
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        config = self.config
        heads = (config.num_heads, config.size_of_head)
        kv_heads = (config.count_of_kv_heads, config.size_of_head)
        query = Projection(config, heads, ("heads", "head_dim"), name="query")(x)
        key = Projection(config, kv_heads, ("kv_heads", "head_dim"), name="key")(x)
        value = Projection(config, kv_heads, ("kv_heads", "head_dim"), name="value")(x)
        if config.positions == "rotary":
            query = pos.rotary(query, inputs.positions, config.rotary_base)
            key = pos.rotary(key, inputs.positions, config.rotary_base)
        query = nn.with_logical_constraint(query, ("batch", "length", "heads", None))
        key = nn.with_logical_constraint(key, ("batch", "length", "kv_heads", None))
        value = nn.with_logical_constraint(value, ("batch", "length", "kv_heads", None))
        if cache is not None:
            cache = cache.write(key, value, inputs.positions)
            key, value = cache.key, cache.value
        dropout_key = None if self.deterministic or not config.attention_dropout_rate else self.make_rng("dropout")
        attended = attend(query, key, value, inputs, config, dropout_key)
        output = Projection(
            config,
            (config.embed_dim,),
            ("embed",),
            input_axes=("heads", "head_dim"),
            stddev=residual_stddev(config),
            name="out",
        )(attended)
        return output, cache
