"""Multi-head, grouped-query and multi-query attention, to itself or to an encoder, with an explicit key/value cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model import positions as pos
from model.config import TransformerConfig
from model.layers import Norm, Projection, residual_scale, softcap, zeros
from model.taps import is_tapped, tap


@flax.struct.dataclass
class AttentionInputs:
    """What all layers share: where each query stands and what it may see.

    A mask is None when causality (and the sliding window) or, in an encoder, nothing at all limits what is seen:
    that keeps the fused kernels possible. `bias` is added to the logits before the softmax.
    """

    positions: Int[Array, "batch length"]
    mask: Bool[Array, "batch 1 query key"] | None = None
    bias: Float[Array, "#batch heads query key"] | None = None
    rotation: pos.Rotation | None = None
    local_mask: Bool[Array, "batch 1 query key"] | None = None
    """The mask of sliding-window layers where they alternate with global ones."""
    local_rotation: pos.Rotation | None = None
    memory: Float[Array, "batch memory embed"] | None = None
    """What the encoder made of its tokens, for cross attention; None when the cache holds its keys and values."""
    memory_mask: Bool[Array, "batch 1 query memory"] | None = None
    is_causal: bool = flax.struct.field(pytree_node=False, default=True)

    def of_layer(self, is_local: Bool[Array, ""] | None) -> AttentionInputs:
        """Those of one layer, where layers differ."""
        if is_local is None:
            return self
        rotation = self.rotation
        if self.local_rotation is not None:
            rotation = jax.tree.map(lambda a, b: jnp.where(is_local, a, b), self.local_rotation, self.rotation)
        return self.replace(mask=jnp.where(is_local, self.local_mask, self.mask), rotation=rotation)


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far; slot i holds position i.

    Arrays are [layers, batch, length, kv_heads, head_dim]; inside one layer the first dim is absent. A decoder that
    follows an encoder also keeps what it attends to there: `memory_key`, `memory_value`, and which of it is real.
    """

    key: Array
    value: Array
    memory_key: Array | None = None
    memory_value: Array | None = None
    memory_mask: Array | None = None

    @classmethod
    def empty(cls, config: TransformerConfig, batch: int, length: int, memory_length: int | None = None) -> KVCache:
        def zeros(length: int) -> Array:
            shape = (config.num_layers, batch, length, config.count_of_kv_heads, config.size_of_head)
            return jnp.zeros(shape, config.dtype)

        if memory_length is None:
            return cls(zeros(length), zeros(length))
        is_real = jnp.zeros((config.num_layers, batch, memory_length), bool)
        return cls(zeros(length), zeros(length), zeros(memory_length), zeros(memory_length), is_real)

    def repeat(self, times: int) -> KVCache:
        """Every row `times` times, one after another; what is attended to in the encoder stays as it is."""
        return self.replace(key=jnp.repeat(self.key, times, axis=1), value=jnp.repeat(self.value, times, axis=1))

    def take(self, rows: Int[Array, "rows"]) -> KVCache:
        """The rows of these numbers; what is attended to in the encoder stays as it is."""
        return self.replace(key=self.key[:, rows], value=self.value[:, rows])

    def write(self, key: Array, value: Array, positions: Int[Array, "batch length"]) -> KVCache:
        """One layer's cache with `key` and `value` [batch, length, kv_heads, head_dim] put at `positions`."""
        rows = jnp.arange(positions.shape[0])[:, None]
        return self.replace(
            key=self.key.at[rows, positions].set(key, mode="drop"),
            value=self.value.at[rows, positions].set(value, mode="drop"),
        )


def attend(
    query: Float[Array, "batch query heads head_dim"],
    key: Float[Array, "batch key kv_heads head_dim"],
    value: Float[Array, "batch key kv_heads head_dim"],
    config: TransformerConfig,
    *,
    mask: Bool[Array, "batch 1 #query key"] | None = None,
    bias: Float[Array, "#batch heads query key"] | None = None,
    is_causal: bool = False,
    sinks: Float[Array, "heads"] | None = None,
    dropout_key: Array | None = None,
    on_weights: Callable[[Array], Array] | None = None,
) -> Float[Array, "batch query heads head_dim"]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    `is_causal` (and the config's sliding window) count only where there is no `mask`. `on_weights` is given the
    weights, and gives those that count.
    """
    is_causal = is_causal and mask is None
    if dropout_key is not None or sinks is not None or config.attention_logit_cap or on_weights is not None:
        return _attend_written_out(query, key, value, config, mask, bias, is_causal, sinks, dropout_key, on_weights)
    window = (config.sliding_window - 1, 0) if is_causal and config.sliding_window else None
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=None if bias is None else bias.astype(query.dtype),
        mask=mask,
        scale=_scale(config),
        is_causal=is_causal,
        local_window_size=window,
        implementation=_implementation(query, mask, bias, config),
    )


def _scale(config: TransformerConfig) -> float:
    return config.attention_scale or config.size_of_head**-0.5


def _implementation(query: Array, mask: Array | None, bias: Array | None, config: TransformerConfig) -> str:
    """cuDNN's fused kernel where it is known to apply; an explicit mask or bias is faster through XLA."""
    if config.attention_implementation != "auto":
        return config.attention_implementation
    fused = (
        jax.default_backend() == "gpu"
        and query.dtype == jnp.bfloat16
        and mask is None
        and bias is None
        and query.shape[1] % 2 == 0
        and query.shape[3] % 8 == 0
        and query.shape[3] <= 128
    )
    return "cudnn" if fused else "xla"


def _attend_written_out(query, key, value, config, mask, bias, is_causal, sinks, dropout_key, on_weights):
    """The same formula with what the library's kernels lack: dropped or tapped weights, capped logits, sinks."""
    batch, length, heads, head_dim = query.shape
    weights = attention_weights(query, key, config, mask, bias, is_causal, sinks)
    if on_weights is not None:
        weights = on_weights(weights)
    if dropout_key is not None:
        keep = 1.0 - config.attention_dropout_rate
        weights = jnp.where(jax.random.bernoulli(dropout_key, keep, weights.shape), weights / keep, 0.0)
    weights = weights.astype(value.dtype).reshape(batch, key.shape[2], -1, length, key.shape[1])
    return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(batch, length, heads, head_dim)


def attention_weights(
    query: Float[Array, "batch query heads head_dim"],
    key: Float[Array, "batch key kv_heads head_dim"],
    config: TransformerConfig,
    mask: Bool[Array, "batch 1 #query key"] | None = None,
    bias: Float[Array, "#batch heads query key"] | None = None,
    is_causal: bool = False,
    sinks: Float[Array, "heads"] | None = None,
) -> Float[Array, "batch heads query key"]:
    """How much of each key every query takes, float32; they sum to 1, less what `sinks` take."""
    batch, length, heads, head_dim = query.shape
    kv_heads, groups = key.shape[2], heads // key.shape[2]
    query = query.reshape(batch, length, kv_heads, groups, head_dim)
    logits = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=jnp.float32) * _scale(config)
    logits = softcap(logits.reshape(batch, heads, length, key.shape[1]), config.attention_logit_cap)
    if bias is not None:
        logits += bias
    if is_causal:
        distance = jnp.arange(length)[:, None] - jnp.arange(key.shape[1])
        mask = (distance >= 0) & (distance < (config.sliding_window or length))
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        column = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None, None], (batch, heads, length, 1))
        logits = jnp.concatenate([logits, column], axis=-1)
    return jax.nn.softmax(logits, axis=-1)[..., : key.shape[1]]


class Attention(nn.Module):
    """Projections around `attend`; returns the output and the layer's updated cache (None without one).

    With `is_cross`, keys and values come from the encoder: from `inputs.memory` where it is given, and are then
    put into the cache, else from the cache, where a source may serve several rows that follow one another.
    """

    config: TransformerConfig
    deterministic: bool
    is_cross: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], inputs: AttentionInputs, cache: KVCache | None
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        config = self.config
        query = self._heads("query", x, config.num_heads)
        if not self.is_cross:
            key, value = self._keys_and_values(x)
            if inputs.rotation is not None:
                query, key = pos.rotary(query, *inputs.rotation), pos.rotary(key, *inputs.rotation)
            if cache is not None:
                cache = cache.write(key, value, inputs.positions)
                key, value = cache.key, cache.value
            mask, bias, is_causal = inputs.mask, inputs.bias, inputs.is_causal
        else:
            mask, bias, is_causal = inputs.memory_mask, None, False
            if inputs.memory is not None:
                key, value = self._keys_and_values(inputs.memory)
                if cache is not None:
                    is_real = jnp.ones(key.shape[:2], bool) if mask is None else mask[:, 0, 0]
                    cache = cache.replace(memory_key=key, memory_value=value, memory_mask=is_real)
            else:
                key, value, mask = cache.memory_key, cache.memory_value, cache.memory_mask[:, None, None, :]
                # The hypotheses of one source are queries side by side: what they attend to is there once.
                query = query.reshape(key.shape[0], -1, *query.shape[2:])
        sinks = None
        if config.attention_sinks:
            sinks = self.param("sinks", zeros(("heads",)), (config.num_heads,), jnp.dtype(config.param_dtype))
        drops = config.attention_dropout_rate and not self.deterministic
        attended = attend(
            query,
            key,
            value,
            config,
            mask=mask,
            bias=bias,
            is_causal=is_causal,
            sinks=sinks,
            dropout_key=self.make_rng("dropout") if drops else None,
            on_weights=partial(tap, self, "probabilities") if is_tapped(self, "probabilities") else None,
        )
        attended = tap(self, "attended", attended)
        output = Projection(
            config,
            (config.embed_dim,),
            ("embed",),
            input_axes=("heads", "head_dim"),
            use_bias=config.biased_attention == "all",
            init_scale=residual_scale(config),
            name="out",
        )(attended.reshape(*x.shape[:2], *attended.shape[2:]))
        return output, cache

    def _keys_and_values(self, x: Array) -> tuple[Array, Array]:
        count = self.config.count_of_kv_heads
        return self._heads("key", x, count), self._heads("value", x, count)

    def _heads(self, name: str, x: Array, count: int) -> Array:
        """[batch, length, count, head_dim], normalized where the config asks for it."""
        config = self.config
        axis = "heads" if name == "query" else "kv_heads"
        init_scale = config.size_of_head**-0.5 if name == "query" and config.initializer == "fan_in" else 1.0
        y = Projection(
            config,
            (count, config.size_of_head),
            (axis, "head_dim"),
            use_bias=config.biased_attention != "none",
            init_scale=init_scale,
            name=name,
        )(x)
        if config.query_key_norm and name != "value":
            y = Norm(config, kind="rms", axis="head_dim", name=f"{name}_norm")(y)
        return nn.with_logical_constraint(y, ("batch", "length", axis, None))
