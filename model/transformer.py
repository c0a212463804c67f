"""The three Transformers, and ELECTRA's pair, from one block library.

    Decoder          GPT, Llama:      tokens → logits of the next token
    Encoder          BERT, ALBERT:    tokens → {"hidden", "pooled", and one output for each head}
    EncoderDecoder   Transformer, T5: source and target tokens → logits; `encode` and `decode` apart

Parameters are plain nested dicts: `token_embedding`, `encoder`, `decoder`, then the heads.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from model import positions as pos
from model import stack
from model.attention import KVCache
from model.config import TransformerConfig
from model.heads import EncoderHeads, LMHead
from model.layers import token_embedding
from model.stack import Stack
from model.taps import Tapped

Ids = Int[Array | np.ndarray, "batch length"]


def _prepared(tokens, positions, *others):
    """Arrays of JAX; positions 0, 1, 2, … where none are given."""
    tokens = jnp.asarray(tokens)
    positions = pos.default_positions(tokens) if positions is None else jnp.asarray(positions)
    return tokens, positions, *(None if other is None else jnp.asarray(other) for other in others)


class Decoder(Tapped):
    """Causal language model: embeddings, blocks, distribution over the vocabulary."""

    config: TransformerConfig

    def setup(self):
        self.token_embedding = token_embedding(self.config)
        self.decoder = Stack(self.config, self.config.num_layers)
        self.head = LMHead(self.config)

    def __call__(
        self,
        tokens: Ids,
        positions: Ids | None = None,
        segment_ids: Ids | None = None,
        prefix: Bool[Array | np.ndarray, "batch key"] | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length vocab"] | tuple[Float[Array, "batch length vocab"], KVCache]:
        """Logits of the next token at every place, in the compute dtype; with a `cache`, (logits, updated cache).

        `positions` default to 0, 1, 2, …; `segment_ids` keep attention inside each document of a packed row;
        `prefix` marks tokens that all others see, also earlier ones (prefix LM). With a cache, `positions` say
        where `tokens` go, everything written before them is seen, and `prefix` marks slots of the cache.
        Dropout acts when `deterministic` is False and needs `rngs={"dropout": key}`.
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("a cache holds one document per row; segment_ids cannot be used with it")
        tokens, positions, segment_ids, prefix = _prepared(tokens, positions, segment_ids, prefix)
        x = self.decoder.embed(self.token_embedding(tokens), positions, None, deterministic)
        inputs, distance = stack.causal(self.config, positions, segment_ids, prefix, cache)
        x, new_cache = self.decoder(x, inputs, distance, cache, deterministic=deterministic)
        logits = self.head(x, self.token_embedding)
        return logits if cache is None else (logits, new_cache)


class Encoder(Tapped):
    """Bidirectional encoder with the heads of its config."""

    config: TransformerConfig

    def setup(self):
        self.token_embedding = token_embedding(self.config)
        self.encoder = Stack(self.config, self.config.num_layers)
        if "lm" in self.config.heads:
            self.head = LMHead(self.config)

    @nn.compact
    def __call__(
        self,
        tokens: Ids,
        positions: Ids | None = None,
        segment_ids: Ids | None = None,
        sentence_ids: Ids | None = None,
        deterministic: bool = True,
    ) -> dict[str, Array]:
        """`hidden` [batch, length, embed], `pooled` [batch, embed], and the output of every head; see `EncoderHeads`.

        Tokens see only tokens with their own number in `segment_ids`, so give padding another (0) than text.
        `sentence_ids` tell first and second sentence (BERT's token types), 0 by default.
        """
        tokens, positions, segment_ids, sentence_ids = _prepared(tokens, positions, segment_ids, sentence_ids)
        x = self.encoder.embed(self.token_embedding(tokens), positions, sentence_ids, deterministic)
        inputs, distance = stack.bidirectional(self.config, positions, segment_ids)
        x, _ = self.encoder(x, inputs, distance, deterministic=deterministic)
        outputs = {"hidden": x} | EncoderHeads(self.config, deterministic, name="heads")(x, segment_ids)
        if "lm" in self.config.heads:
            outputs["lm"] = self.head(x, self.token_embedding)
        return outputs


class EncoderDecoder(Tapped):
    """Sequence to sequence: a bidirectional encoder and a causal decoder that attends to it."""

    config: TransformerConfig

    def setup(self):
        config = self.config
        self.token_embedding = token_embedding(config)
        if not config.share_embeddings:
            self.encoder_token_embedding = token_embedding(config)
        self.decoder = Stack(config, config.num_layers)
        if not config.share_encoder_decoder:
            self.encoder = Stack(config, config.count_of_encoder_layers)
        self.head = LMHead(config)

    def encode(
        self,
        tokens: Ids,
        positions: Ids | None = None,
        segment_ids: Ids | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length embed"]:
        """Hidden states of the source. Tokens see only those with their own number in `segment_ids` (0: padding)."""
        config = self.config
        tokens, positions, segment_ids = _prepared(tokens, positions, segment_ids)
        table = self.token_embedding if config.share_embeddings else self.encoder_token_embedding
        encoder = self.decoder if config.share_encoder_decoder else self.encoder
        x = encoder.embed(table(tokens), positions, None, deterministic)
        inputs, distance = stack.bidirectional(config, positions, segment_ids)
        return encoder(x, inputs, distance, deterministic=deterministic)[0]

    def decode(
        self,
        encoded: Float[Array, "batch memory embed"] | None,
        tokens: Ids,
        positions: Ids | None = None,
        segment_ids: Ids | None = None,
        encoder_segment_ids: Int[Array | np.ndarray, "batch memory"] | None = None,
        cache: KVCache | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch length vocab"] | tuple[Float[Array, "batch length vocab"], KVCache]:
        """Logits of the next target token at every place; with a `cache`, (logits, updated cache).

        A target token sees the source tokens of its own segment, or without `segment_ids` all that are not
        padding (0). With a cache, `encoded` is given once; afterwards None stands for what the cache holds.
        """
        tokens, positions, segment_ids, source = _prepared(tokens, positions, segment_ids, encoder_segment_ids)
        x = self.decoder.embed(self.token_embedding(tokens), positions, None, deterministic)
        inputs, distance = stack.causal(self.config, positions, segment_ids, None, cache)
        mask = None
        if source is not None:
            is_real = (source != 0)[:, None, :]
            mask = is_real if segment_ids is None else is_real & (segment_ids[:, :, None] == source[:, None, :])
            mask = jnp.broadcast_to(mask[:, None], (mask.shape[0], 1, tokens.shape[1], mask.shape[2]))
        inputs = inputs.replace(memory=encoded, memory_mask=mask)
        x, new_cache = self.decoder(x, inputs, distance, cache, has_memory=True, deterministic=deterministic)
        logits = self.head(x, self.token_embedding)
        return logits if cache is None else (logits, new_cache)

    def __call__(
        self,
        encoder_tokens: Ids,
        tokens: Int[Array | np.ndarray, "batch target"],
        *,
        encoder_positions: Ids | None = None,
        encoder_segment_ids: Ids | None = None,
        positions: Int[Array | np.ndarray, "batch target"] | None = None,
        segment_ids: Int[Array | np.ndarray, "batch target"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch target vocab"]:
        """Logits of the next target token at every place, from source and (shifted) target tokens."""
        encoded = self.encode(encoder_tokens, encoder_positions, encoder_segment_ids, deterministic)
        return self.decode(encoded, tokens, positions, segment_ids, encoder_segment_ids, deterministic=deterministic)


def generator_config(config: TransformerConfig, fraction: float) -> TransformerConfig:
    """ELECTRA's generator: `fraction` of the discriminator's width, on the discriminator's embeddings (section 3.2)."""

    def share(size: int) -> int:
        return max(1, round(size * fraction))

    width = share(config.embed_dim)
    changes = dict(
        embed_dim=width,
        embedding_dim=None if width == config.size_of_embedding else config.size_of_embedding,
        num_heads=share(config.num_heads),
        num_kv_heads=None if config.num_kv_heads is None else share(config.num_kv_heads),
        mlp_dim=share(config.size_of_mlp),
        heads=("lm",),
        head_transform=True,
        head_bias=True,
        pooler="none",
    )
    return TransformerConfig.model_validate(config.model_dump() | changes)


class ReplacedTokenDetector(Tapped):
    """ELECTRA (Clark et al. 2020): a small masked LM replaces words, the encoder tells which."""

    config: TransformerConfig
    generator_fraction: float

    def setup(self):
        small = generator_config(self.config, self.generator_fraction)
        self.token_embedding = token_embedding(self.config)
        self.encoder = Stack(self.config, self.config.num_layers)
        self.generator = Stack(small, small.num_layers)
        self.head = LMHead(small)

    @nn.compact
    def __call__(
        self,
        tokens: Ids,
        targets: Ids,
        weights: Float[Array | np.ndarray, "batch length"],
        positions: Ids | None = None,
        segment_ids: Ids | None = None,
        deterministic: bool = True,
    ) -> dict[str, Array]:
        """`lm`: the generator's logits; `detection`: the discriminator's; `replaced`: bool, the truth of the latter.

        `tokens` are masked where `weights` is 1; there the discriminator reads words sampled from the generator,
        elsewhere the `targets`. A sampled word that happens to be the original counts as not replaced.
        No gradient passes through the sampling, which needs `rngs={"sample": key}`.
        """
        tokens, positions, segment_ids, targets = _prepared(tokens, positions, segment_ids, targets)
        inputs, distance = stack.bidirectional(self.config, positions, segment_ids)

        def run(encoder: Stack, tokens: Array) -> Array:
            x = self.encoder.embed(self.token_embedding(tokens), positions, None, deterministic)
            return encoder(x, inputs, distance, deterministic=deterministic)[0]

        logits = self.head(run(self.generator, tokens), self.token_embedding)
        sampled = jax.random.categorical(self.make_rng("sample"), jax.lax.stop_gradient(logits).astype(jnp.float32))
        corrupted = jnp.where(jnp.asarray(weights) > 0, sampled, targets).astype(jnp.int32)
        outputs = EncoderHeads(self.config, deterministic, name="heads")(run(self.encoder, corrupted), segment_ids)
        return {"lm": logits, "detection": outputs["detection"], "replaced": corrupted != targets}


STACKS = {"decoder": Decoder, "encoder": Encoder, "encoder_decoder": EncoderDecoder}


def transformer(config: TransformerConfig) -> Decoder | Encoder | EncoderDecoder:
    """The model that `config.stack` names."""
    return STACKS[config.stack](config)


def initialize(model: nn.Module, key: Array) -> dict:
    """New parameters, each in a box that names its dims; `tree.unbox` gives the plain nested dict."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    match model:
        case EncoderDecoder():
            inputs = (tokens, tokens)
        case ReplacedTokenDetector():
            inputs = (tokens, tokens, jnp.ones((1, 2)))
        case _:
            inputs = (tokens,)
    return model.init({"params": key, "sample": key}, *inputs)["params"]
