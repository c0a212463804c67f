"""Transformer stacks assembled from the layers, and the decoder language model."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from model import masks
from model import positions as pos
from model.attention import AttentionInputs, KVCache, SelfAttention
from model.config import TransformerConfig
from model.feed_forward import FeedForward
from model.layers import Embedding, Norm, Projection

RESIDUAL = ("batch", "length", None)


class DecoderLayer(nn.Module):
    """One block: causal self-attention and feed-forward, each with residual, norm and dropout."""

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], cache: KVCache | None, inputs: AttentionInputs
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        config = self.config
        drop = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)
        attention = SelfAttention(config, self.deterministic, name="self_attention")
        feed_forward = FeedForward(config, name="feed_forward")
        attention_norm = Norm(config, name="self_attention_norm")
        feed_forward_norm = Norm(config, name="feed_forward_norm")
        if config.norm_placement == "pre":
            y, cache = attention(attention_norm(x), inputs, cache)
            x = nn.with_logical_constraint(x + drop(y), RESIDUAL)
            x += drop(feed_forward(feed_forward_norm(x)))
        else:
            y, cache = attention(x, inputs, cache)
            x = nn.with_logical_constraint(attention_norm(x + drop(y)), RESIDUAL)
            x = feed_forward_norm(x + drop(feed_forward(x)))
        return nn.with_logical_constraint(x, RESIDUAL), cache


class Decoder(nn.Module):
    """A stack of `num_layers` blocks whose parameters lie along one `layers` dim."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length embed"],
        positions: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"] | None,
        cache: KVCache | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "batch length embed"], KVCache | None]:
        config = self.config
        inputs = self._attention_inputs(positions, segment_ids, cache)
        layer = DecoderLayer
        if config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
            layer = nn.remat(layer, prevent_cse=config.layer_loop == "unroll", policy=policy)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            length=config.num_layers,
            unroll=config.num_layers if config.layer_loop == "unroll" else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, deterministic, name="layers")
        x, cache = layers(x, cache, inputs)
        if config.norm_placement == "pre":
            x = Norm(config, name="final_norm")(x)
        return x, cache

    def _attention_inputs(self, positions, segment_ids, cache) -> AttentionInputs:
        """Masks and biases, made once for all layers.

        Without a cache, queries and keys stand side by side and distance is counted in slots (within one
        document that equals the distance in positions). With one, keys stand at the slots of the cache.
        """
        config = self.config
        if cache is None:
            query = key = pos.default_positions(positions)
        else:
            query = positions
            key = jnp.broadcast_to(jnp.arange(cache.key.shape[2]), (positions.shape[0], cache.key.shape[2]))
        mask = None
        if segment_ids is not None or cache is not None:
            mask = masks.causal(query, key, config.sliding_window)
            if segment_ids is not None:
                mask &= masks.same_segment(segment_ids, segment_ids)
            mask = mask[:, None]
        bias = None
        if config.positions in ("alibi", "t5_relative"):
            rows = slice(None) if cache is not None else slice(1)  # side by side, every row has the same distances
            distance = query[rows, :, None] - key[rows, None, :]
            if config.positions == "alibi":
                bias = pos.alibi_bias(distance, config.num_heads)
            else:
                init = nn.with_logical_partitioning(nn.initializers.normal(config.init_stddev), (None, "heads"))
                shape = (config.relative_buckets, config.num_heads)
                table = self.param("relative_bias", init, shape, jnp.dtype(config.param_dtype))
                buckets = pos.t5_bucket(distance, config.relative_buckets, config.relative_max_distance)
                bias = jnp.moveaxis(table.astype(jnp.float32)[buckets], -1, 1)
        return AttentionInputs(positions, mask, bias)


class DecoderLM(nn.Module):
    """Causal language model: token (and position) embeddings, `Decoder`, projection to the vocabulary."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "batch length"],
        positions: Int[Array | np.ndarray, "batch length"] | None = None,
        segment_ids: Int[Array | np.ndarray, "batch length"] | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length vocab"] | tuple[Float[Array, "batch length vocab"], KVCache]:
        """Logits of the next token at every place, in the compute dtype; with a `cache`, (logits, updated cache).

        `positions` default to 0, 1, 2, …; `segment_ids` keep attention inside each document of a packed row.
        With a cache, `positions` say where `tokens` go, and everything written before them is seen.
        Dropout acts when `deterministic` is False and needs `rngs={"dropout": key}`.
        """
        config = self.config
        if cache is not None and segment_ids is not None:
            raise ValueError("a cache holds one document per row; segment_ids cannot be used with it")
        tokens = jnp.asarray(tokens)
        positions = pos.default_positions(tokens) if positions is None else jnp.asarray(positions)
        segment_ids = None if segment_ids is None else jnp.asarray(segment_ids)
        embed = Embedding(config, config.vocab_size, ("vocab", "embed"), config.init_stddev, name="token_embedding")
        x = embed(tokens)
        if config.scale_embeddings:
            x *= jnp.sqrt(jnp.asarray(config.embed_dim, x.dtype))
        if config.positions == "sinusoidal":
            x += pos.sinusoidal(positions, config.embed_dim).astype(x.dtype)
        elif config.positions == "learned":
            x += Embedding(
                config,
                config.max_length,
                ("length", "embed"),
                config.position_init_stddev,
                name="position_embedding",
            )(positions)
        x = nn.Dropout(config.dropout_rate, deterministic=deterministic)(x)
        x = nn.with_logical_constraint(x, RESIDUAL)
        x, new_cache = Decoder(config, name="decoder")(x, positions, segment_ids, cache, deterministic)
        if config.tie_embeddings:
            logits = embed.attend(x)
        else:
            logits = Projection(config, (config.vocab_size,), ("vocab",), use_bias=False, name="head")(x)
        logits = nn.with_logical_constraint(logits, ("batch", "length", "vocab"))
        return logits if cache is None else (logits, new_cache)
