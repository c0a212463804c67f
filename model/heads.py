"""What is read off the last hidden states: words, labels, spans, pairs of sentences, replaced tokens."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.config import TransformerConfig
from model.layers import ACTIVATIONS, Embedding, Norm, Projection, kernel_init, softcap, zeros
from model.taps import tap


class LMHead(nn.Module):
    """Logits of every word: the embedding table's rows when tied, else a kernel of its own (Press & Wolf 2017).

    With `head_transform`, a dense layer, the activation and a norm come first: BERT's masked-LM head.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length embed"], table: Embedding) -> Float[Array, "batch length vocab"]:
        config = self.config
        if config.head_transform:
            width = (config.size_of_embedding,)
            x = Projection(config, width, ("features",), use_bias=config.use_bias, name="transform")(x)
            x = Norm(config, axis="features", name="norm")(ACTIVATIONS[config.activation](x))
        if config.scale_logits:
            x *= jnp.asarray(config.embed_dim**-0.5, x.dtype)
        if config.tie_embeddings:
            logits = table.attend(x)
        else:
            axes = ("features" if config.head_transform else "embed", "vocab")
            shape = (x.shape[-1], config.vocab_size)
            kernel = self.param("kernel", kernel_init(config, axes, shape[0]), shape, jnp.dtype(config.param_dtype))
            logits = jnp.einsum("ble,ev->blv", x.astype(config.dtype), kernel.astype(config.dtype))
        if config.head_bias:
            bias = self.param("bias", zeros(("vocab",)), (config.vocab_size,), jnp.dtype(config.param_dtype))
            logits += bias.astype(logits.dtype)
        logits = softcap(logits, config.logit_cap)
        return tap(self, "output", nn.with_logical_constraint(logits, ("batch", "length", "vocab")))


def pool(
    x: Float[Array, "batch length embed"], segment_ids: Int[Array, "batch length"] | None, pooling: str
) -> Float[Array, "batch 1 embed"]:
    """One vector of each text: its first token's, or the mean or maximum over its tokens; padding (0) is left out.

    Sentence-BERT's choices (Reimers & Gurevych 2019, section 3). A row of padding alone has 0 as mean and maximum.
    """
    if pooling == "first":
        return x[:, :1]
    is_real = jnp.ones((*x.shape[:2], 1), bool) if segment_ids is None else (segment_ids > 0)[..., None]
    if pooling == "mean":
        count = is_real.sum(axis=1, keepdims=True)
        total = jnp.where(is_real, x, 0).sum(axis=1, keepdims=True, dtype=jnp.float32)
        return (total / jnp.maximum(count, 1)).astype(x.dtype)
    greatest = jnp.where(is_real, x, -jnp.inf).max(axis=1, keepdims=True)
    return jnp.where(is_real.any(axis=1, keepdims=True), greatest, 0)


class EncoderHeads(nn.Module):
    """All heads of an encoder but the vocabulary's: {head: output}.

    pooled: [batch, embed], one vector of the text (`pool`), through a dense layer where `pooler` names its activation.
    sentence_pair: [batch, 2] logits, next sentence (Devlin et al. 2019) or sentence order (Lan et al. 2020).
    sequence: [batch, num_labels] logits, or the estimates of a regression.
    choice: [batch] scores; the rows of one question's choices compete in a softmax.
    tokens: [batch, length, num_labels] logits, as for entity tagging.
    span: [batch, length, 2] logits of the first and of the last token of an answer.
    detection: [batch, length] logits of having been replaced (Clark et al. 2020).
    """

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], segment_ids: Int[Array, "batch length"] | None
    ) -> dict[str, Array]:
        config = self.config
        drop = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)

        def linear(name: str, y: Array, features: int) -> Array:
            return Projection(config, (features,), ("features",), name=name)(y)

        pooled = pool(x, segment_ids, config.pooling)
        if config.pooler != "none":
            pooled = ACTIVATIONS[config.pooler](linear("pooler", pooled, config.embed_dim))
        pooled = tap(self, "pooled", pooled)
        outputs = {"pooled": pooled[:, 0]}
        for head in config.heads:
            match head:
                case "sentence_pair":
                    outputs[head] = linear(head, drop(pooled), 2)[:, 0]
                case "sequence":
                    outputs[head] = linear(head, drop(pooled), config.num_labels)[:, 0]
                case "choice":
                    outputs[head] = linear(head, drop(pooled), 1)[:, 0, 0]
                case "tokens":
                    outputs[head] = linear(head, drop(x), config.num_labels)
                case "span":
                    outputs[head] = linear(head, x, 2)
                case "detection":
                    hidden = ACTIVATIONS[config.activation](linear("detection_dense", x, config.embed_dim))
                    outputs[head] = linear(head, hidden, 1)[..., 0]
        return outputs
