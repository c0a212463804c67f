"""A stack of Transformer blocks: the encoder and the decoder are the same module, told apart by what may be seen."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from model import masks
from model import positions as pos
from model.attention import Attention, AttentionInputs, KVCache
from model.config import TransformerConfig, Unscaled
from model.experts import MixtureOfExperts
from model.feed_forward import FeedForward
from model.layers import Embedding, Norm, Projection, normal
from model.taps import PATCHES, TAPS, tap

RESIDUAL = ("batch", "length", None)


class Layer(nn.Module):
    """One block: self-attention, cross attention to an encoder, feed-forward; each with residual and norm."""

    config: TransformerConfig
    deterministic: bool
    has_memory: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        own: tuple[KVCache | None, Bool[Array, ""] | None],
        inputs: AttentionInputs,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        config = self.config
        cache, is_local = own
        inputs = inputs.of_layer(is_local)
        drop = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)
        feed_forward = (MixtureOfExperts if config.num_experts else FeedForward)(
            config, self.deterministic, name="feed_forward"
        )

        def add(x: Array, y: Array) -> Array:
            return nn.with_logical_constraint(x + drop(y), RESIDUAL)

        def sublayer(x: Array, name: str, function) -> Array:
            norm = Norm(config, name=f"{name}_norm")
            if config.norm_placement == "post":
                return norm(add(x, function(x)))
            y = function(norm(x))
            if config.norm_placement == "peri":
                y = Norm(config, name=f"{name}_post_norm")(y)
            return add(x, y)

        def attention(name: str):
            def attend(y: Array) -> Array:
                nonlocal cache
                y, cache = Attention(config, self.deterministic, name == "cross_attention", name=name)(y, inputs, cache)
                return y

            return attend

        if config.parallel_blocks:
            y = Norm(config, name="norm")(x)
            x = add(x, attention("self_attention")(y) + feed_forward(y))
        else:
            x = sublayer(x, "self_attention", attention("self_attention"))
            if self.has_memory:
                x = sublayer(x, "cross_attention", attention("cross_attention"))
            x = sublayer(x, "feed_forward", feed_forward)
        return tap(self, "output", x), cache


class Stack(nn.Module):
    """Embeddings of place and sentence, then `num_layers` blocks whose parameters lie along one `layers` dim.

    One instance may serve as encoder and as decoder: then both have the same parameters, cross attention apart.
    """

    config: TransformerConfig
    num_layers: int

    def setup(self):
        config = self.config
        if config.positions == "learned":
            rows = config.max_length + config.position_offset
            self.position_embedding = Embedding(config, rows, "length", config.position_init_stddev)
        if config.num_sentence_types:
            self.sentence_embedding = Embedding(config, config.num_sentence_types, "sentences", config.init_stddev)
        if config.embedding_norm:
            self.embedding_norm = Norm(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def embed(
        self,
        x: Float[Array, "batch length width"],
        positions: Int[Array, "batch length"],
        sentence_ids: Int[Array, "batch length"] | None,
        deterministic: bool,
    ) -> Float[Array, "batch length width"]:
        """Token vectors plus what says where they stand; still as wide as the tables."""
        config = self.config
        if config.scale_embeddings:
            x *= jnp.sqrt(jnp.asarray(config.size_of_embedding, x.dtype))
        if config.positions == "sinusoidal":
            x += pos.sinusoidal(positions, config.size_of_embedding).astype(x.dtype)
        elif config.positions == "learned":
            x += self.position_embedding(positions + config.position_offset)
        if config.num_sentence_types:
            x += self.sentence_embedding(jnp.zeros_like(positions) if sentence_ids is None else sentence_ids)
        if config.embedding_norm:
            x = self.embedding_norm(x)
        x = tap(self, "embedded", self.dropout(x, deterministic=deterministic))
        return nn.with_logical_constraint(x, RESIDUAL)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        inputs: AttentionInputs,
        distance: Int[Array, "rows query key"],
        cache: KVCache | None = None,
        *,
        has_memory: bool = False,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        """Embedded tokens through all blocks. `distance` = query slot - key slot, for relative biases."""
        config = self.config
        if config.embedding_dim is not None:
            project = Projection(
                config, (config.embed_dim,), ("embed",), ("features",), config.use_bias, name="embedding_projection"
            )
            x = nn.with_logical_constraint(project(x), RESIDUAL)
        inputs = inputs.replace(bias=self._bias(distance, inputs.is_causal))
        layer = Layer
        if config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
            layer = nn.remat(layer, prevent_cse=config.layer_loop == "unroll", policy=policy)
        axes = {"losses": 0, "intermediates": 0, TAPS: 0, PATCHES: 0} | ({} if config.share_layers else {"params": 0})
        layers = nn.scan(
            layer,
            variable_axes=axes,
            variable_broadcast="params" if config.share_layers else False,
            split_rngs={"params": not config.share_layers, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=self.num_layers,
            unroll=self.num_layers if config.layer_loop == "unroll" else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, deterministic, has_memory, name="layers")
        is_local = None
        if config.global_every and inputs.local_mask is not None:
            is_local = jnp.asarray((np.arange(self.num_layers) + 1) % config.global_every != 0)
        x, cache = layers(x, (cache, is_local), inputs)
        if config.norm_placement != "post":
            x = Norm(config, name="final_norm")(x)
        return x, cache

    def _bias(self, distance: Int[Array, "rows query key"], is_causal: bool) -> Array | None:
        config = self.config
        if config.positions == "alibi":
            return pos.alibi_bias(distance, config.num_heads)
        if config.positions != "t5_relative":
            return None
        stddev = config.embed_dim**-0.5 if config.initializer == "fan_in" else config.init_stddev
        init = normal(stddev, (None, "heads"))
        shape = (config.relative_buckets, config.num_heads)
        table = self.param("relative_bias", init, shape, jnp.dtype(config.param_dtype))
        buckets = pos.t5_bucket(distance, config.relative_buckets, config.relative_max_distance, is_causal)
        return jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 1)


def bidirectional(
    config: TransformerConfig, positions: Int[Array, "batch length"], segment_ids: Int[Array, "batch length"] | None
) -> tuple[AttentionInputs, Int[Array, "1 length length"]]:
    """What an encoder's layers share: every token sees every token of its segment."""
    slots = pos.default_positions(positions)
    mask = None if segment_ids is None else masks.same_segment(segment_ids, segment_ids)[:, None]
    inputs = AttentionInputs(positions, mask, rotation=_rotation(config, positions), is_causal=False)
    return inputs, slots[:1, :, None] - slots[:1, None, :]


def causal(
    config: TransformerConfig,
    positions: Int[Array, "batch length"],
    segment_ids: Int[Array, "batch length"] | None,
    prefix: Bool[Array, "batch key"] | None,
    cache: KVCache | None,
) -> tuple[AttentionInputs, Int[Array, "rows length key"]]:
    """What a decoder's layers share.

    Without a cache, queries and keys stand side by side and distance is counted in slots (within one document
    that equals the distance in positions). With one, keys stand at the slots of the cache, and so does `prefix`.
    """
    if cache is None:
        query = key = pos.default_positions(positions)
    else:
        query = positions
        key = jnp.broadcast_to(jnp.arange(cache.key.shape[2]), (positions.shape[0], cache.key.shape[2]))

    def mask(window: int | None) -> Array:
        seen = masks.causal(query, key, window)
        if prefix is not None:
            seen |= masks.prefix(prefix)
        if segment_ids is not None:
            seen &= masks.same_segment(segment_ids, segment_ids)
        return seen[:, None]

    alternate = config.global_every is not None
    is_plain = segment_ids is None and cache is None and prefix is None and not alternate
    inputs = AttentionInputs(
        positions,
        None if is_plain else mask(None if alternate else config.sliding_window),
        rotation=_rotation(config, positions),
        local_mask=mask(config.sliding_window) if alternate else None,
        local_rotation=_rotation(config, positions, is_local=True) if config.local_rotary_base else None,
    )
    rows = slice(None) if cache is not None else slice(1)  # side by side, every row has the same distances
    return inputs, query[rows, :, None] - key[rows, None, :]


def _rotation(config: TransformerConfig, positions: Array, is_local: bool = False) -> pos.Rotation | None:
    if config.positions != "rotary":
        return None
    if is_local:
        return pos.rotation(positions, config.size_of_head, config.local_rotary_base, Unscaled())
    return pos.rotation(positions, config.size_of_head, config.rotary_base, config.rotary_scaling)
