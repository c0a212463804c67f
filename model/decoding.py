"""Writing text token by token: what is read into the cache, how a token is chosen, and the loop around both.

    state = start(config, keys, capacity)                       # nothing read yet
    state = read(model, params, state, tokens, lengths)         # prompts, right-padded
    state, tokens = decode(model, params, state, allowed, num_steps=8, eos_id=3, sampling=Sampling())

An encoder–decoder reads a source besides: `start(..., source_length=n)` and `read(..., source=…, source_lengths=…)`.

Slots of the cache equal positions, so prompts of unequal length stand side by side, padded on the right: the
slot of a pad token is overwritten by a real one before any token can see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from model.attention import KVCache
from model.config import TransformerConfig
from model.taps import capture
from model.transformer import Decoder, EncoderDecoder

# Choosing a token ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's distribution; the fields act in their order below.

    repetition_penalty: divides positive and multiplies negative logits of tokens already in the text
        (CTRL, Keskar et al. 2019, section 4.1); 1 changes nothing.
    temperature: divides the logits; 0 takes the most likely token and ignores the rest.
    top_k: only the k most likely tokens (Fan et al. 2018).
    top_p: only the smallest set of most likely tokens whose mass is at least p (Holtzman et al. 2020,
        section 3.1).
    min_p: only tokens at least this fraction as likely as the most likely one (Nguyen et al. 2024).

    Raises ValueError for a value that means nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number of at least 0, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be more than 0 and at most 1, not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be at least 0 and less than 1, not {self.min_p}")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(f"repetition_penalty must be from 0.01 to 100, not {self.repetition_penalty}")


@dataclass(frozen=True)
class Constraints:
    """What a text must obey, however its tokens are chosen.

    no_repeat_ngram: no n-gram occurs twice in the decoder's text, its prompt included (Paulus et al. 2018, section
        2.5, of trigrams); 0 allows all.
    min_new_tokens: the end comes after at least this many tokens.
    first_token: the first token written, whether or not it is allowed elsewhere: mBART's language (Liu et al. 2020).

    Raises ValueError for a value that means nothing.
    """

    no_repeat_ngram: int = 0
    min_new_tokens: int = 0
    first_token: int | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")


UNCONSTRAINED = Constraints()


def constrain(
    logits: Float[Array, "rows vocab"],
    allowed: Bool[Array, "vocab"],
    text: Int[Array, "rows capacity"],
    lengths: Int[Array, "rows"],
    num_written: Int[Array, "rows"],
    constraints: Constraints,
    eos_id: int,
) -> Float[Array, "rows vocab"]:
    """The logits with -inf for every token that must not follow `text[row, :lengths[row]]`.

    The last `num_written` tokens of a text are the model's own. All of a row may be -inf: then nothing can follow.
    """
    tokens = jnp.arange(logits.shape[-1])
    permitted = jnp.broadcast_to(allowed, logits.shape)
    if constraints.min_new_tokens:
        permitted &= (tokens != eos_id) | (num_written[:, None] >= constraints.min_new_tokens)
    if constraints.no_repeat_ngram:
        permitted &= ~_would_repeat(text, lengths, constraints.no_repeat_ngram, logits.shape[-1])
    if constraints.first_token is not None:
        permitted = jnp.where(num_written[:, None] == 0, tokens == constraints.first_token, permitted)
    return jnp.where(permitted, logits, -jnp.inf)


def _would_repeat(
    text: Int[Array, "rows capacity"], lengths: Int[Array, "rows"], n: int, vocab_size: int
) -> Bool[Array, "rows vocab"]:
    """The tokens that end an n-gram which the text already has."""
    rows, starts = jnp.arange(len(text))[:, None], jnp.arange(max(text.shape[1] - n + 1, 0))
    is_match = starts + n <= lengths[:, None]  # the whole n-gram is in the text
    for i in range(n - 1):
        last = jnp.take_along_axis(text, jnp.maximum(lengths - (n - 1) + i, 0)[:, None], axis=1)
        is_match &= text[:, starts + i] == last
    return jnp.zeros((len(text), vocab_size), bool).at[rows, text[:, starts + n - 1]].max(is_match)


def choose(
    logits: Float[Array, "batch vocab"],
    seen: Bool[Array, "batch vocab"],
    keys: Key[Array, "batch"],
    sampling: Sampling,
) -> Int[Array, "batch"]:
    """One token for each row, each from its own key. `seen` marks the tokens already in a row's text.

    A logit of -inf is never chosen. Logits that are NaN or +inf have no meaning here: test before.
    """
    logits = logits.astype(jnp.float32)
    if sampling.repetition_penalty != 1:
        penalty = jnp.float32(sampling.repetition_penalty)
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # The largest logit is moved to 0, and both the divisor and its inverse are normal numbers: no temperature
    # can make a NaN, not even of the -inf of a token that is not allowed.
    temperature = min(max(sampling.temperature, 1e-30), 1e30)
    logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    if sampling.top_k is not None or sampling.top_p is not None:
        logits = jnp.where(_most_likely(logits, sampling.top_k, sampling.top_p), logits, -jnp.inf)
    if sampling.min_p:
        logits = jnp.where(logits >= math.log(sampling.min_p), logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _most_likely(
    logits: Float[Array, "batch vocab"], top_k: int | None, top_p: float | None
) -> Bool[Array, "batch vocab"]:
    """The tokens that top-k and then top-p keep; among equals, those with the lower ids."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    logits = jnp.take_along_axis(logits, order, axis=-1)
    keep = jnp.arange(logits.shape[-1]) < (logits.shape[-1] if top_k is None else top_k)
    keep = jnp.broadcast_to(keep, logits.shape)
    if top_p is not None:
        probabilities = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf), axis=-1)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The most likely token stays, however small p is.
        keep &= (mass_before < top_p) | (jnp.arange(logits.shape[-1]) == 0)
    return jnp.put_along_axis(jnp.zeros_like(keep), order, keep, axis=-1, inplace=False)


# Reading and writing ---------------------------------------------------------------------------------------


@flax.struct.dataclass
class DecodeState:
    """Everything that changes while text is written; one row per text."""

    cache: KVCache
    logits: Float[Array, "batch vocab"]
    """Of the next token, float32."""
    text: Int[Array, "batch capacity"]
    """The tokens in the cache."""
    lengths: Int[Array, "batch"]
    """Tokens in the cache, also the position of the next one."""
    limits: Int[Array, "batch"]
    """At this length a row is full: that of the cache, or less."""
    seen: Bool[Array, "batch vocab"]
    """Tokens that occur in the text, prompt included."""
    keys: Key[Array, "batch"]
    """A row's draws depend on its key and `num_written` alone: not on the other rows, nor on the chunks."""
    num_written: Int[Array, "batch"]
    """Tokens written since the prompt."""
    log_probability: Float[Array, "batch"]
    """Of what was written, by the model's own distribution; NaN where its logits were not finite."""
    done: Bool[Array, "batch"]
    """Rows that write no more."""


def bucket(length: int, capacity: int) -> int:
    """`length` rounded up to a power of two of at least 16, at most `capacity`: few programs are compiled."""
    return min(max(16, 1 << (length - 1).bit_length()), capacity)


def start(
    config: TransformerConfig, keys: Key[Array, "batch"], capacity: int, source_length: int | None = None
) -> DecodeState:
    """A state with nothing read, for one row per key and texts of up to `capacity` tokens.

    `source_length`: tokens in an encoder–decoder's source, padding included.
    """
    batch = len(keys)
    zeros = jnp.zeros(batch, jnp.int32)
    return DecodeState(
        cache=KVCache.empty(config, batch, capacity, source_length),
        logits=jnp.zeros((batch, config.vocab_size), jnp.float32),
        text=jnp.zeros((batch, capacity), jnp.int32),
        lengths=zeros,
        limits=jnp.full_like(zeros, capacity),
        seen=jnp.zeros((batch, config.vocab_size), bool),
        keys=keys,
        num_written=jnp.zeros_like(zeros),
        log_probability=jnp.zeros(batch, jnp.float32),
        done=jnp.zeros(batch, bool),
    )


def prefill(
    model: Decoder | EncoderDecoder,
    params: Any,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, "batch"],
    cache: KVCache,
    *,
    source: Int[Array, "batch source"] | None = None,
    source_lengths: Int[Array, "batch"] | None = None,
    is_prefix: bool = False,
    with_attention: bool = False,
) -> tuple[Float[Array, "batch vocab"], KVCache, Float[Array, "batch source"] | None]:
    """Read right-padded `tokens` from position 0; the float32 logits after each row's last real token, and the cache.

    Rows of length 0 keep their cache; their logits mean nothing. An encoder–decoder also reads the right-padded
    `source`. `is_prefix`: tokens see later ones too, as a prefix LM has learned. The third result is None, or
    `with_attention` how much of each source token went into the logits: the last layer's weights, averaged over heads.
    """
    if isinstance(model, EncoderDecoder):
        segments = (jnp.arange(source.shape[1]) < source_lengths[:, None]).astype(jnp.int32)
        encoded = model.apply({"params": params}, source, None, segments, method="encode")
        arguments = dict(encoder_segment_ids=segments, cache=cache, method="decode")
        logits, filled, attention = _apply(model, params, with_attention, encoded, tokens, **arguments)
    else:
        prefix = jnp.arange(cache.key.shape[2]) < lengths[:, None] if is_prefix else None
        logits, filled, attention = _apply(model, params, with_attention, tokens, prefix=prefix, cache=cache)

    def where_read(new: Array, old: Array) -> Array:
        return jnp.where((lengths > 0).reshape(1, -1, *[1] * (new.ndim - 2)), new, old)

    def after_last(x: Array) -> Array:
        return jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0].astype(jnp.float32)

    cache = jax.tree.map(where_read, filled, cache)
    return after_last(logits), cache, None if attention is None else after_last(attention)


def decode_step(
    model: Decoder | EncoderDecoder,
    params: Any,
    tokens: Int[Array, "rows"],
    positions: Int[Array, "rows"],
    cache: KVCache,
    *,
    with_attention: bool = False,
) -> tuple[Float[Array, "rows vocab"], KVCache, Float[Array, "rows source"] | None]:
    """Read one token for each row at its position; the float32 logits of the next one, and the rest as of `prefill`.

    Of an encoder–decoder, rows that follow one another may share a source: as many as there are rows to a source in
    the cache.
    """
    tokens, positions = tokens[:, None], positions[:, None]
    if isinstance(model, EncoderDecoder):
        read = (None, tokens, positions)
        logits, cache, attention = _apply(model, params, with_attention, *read, cache=cache, method="decode")
    else:
        logits, cache, attention = _apply(model, params, with_attention, tokens, positions=positions, cache=cache)
    if attention is not None:
        attention = attention.reshape(len(tokens), attention.shape[-1]).astype(jnp.float32)
    return logits[:, 0].astype(jnp.float32), cache, attention


def _apply(model: Decoder | EncoderDecoder, params: Any, with_attention: bool, *inputs: Any, **named: Any):
    """Logits, cache, and None or the last layer's attention to the source."""
    if not with_attention:
        return *model.apply({"params": params}, *inputs, **named), None
    address = f"decoder/layers/{model.config.num_layers - 1}/cross_attention/probabilities"
    with capture(address) as taps:
        logits, cache = model.apply({"params": params}, *inputs, **named)
    return logits, cache, taps[address].mean(axis=1)


@partial(jax.jit, static_argnames=("model", "is_prefix"), donate_argnames="state")
def read(
    model: Decoder | EncoderDecoder,
    params: Any,
    state: DecodeState,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, "batch"],
    *,
    source: Int[Array, "batch source"] | None = None,
    source_lengths: Int[Array, "batch"] | None = None,
    is_prefix: bool = False,
) -> DecodeState:
    """Give each row the context `tokens[row, :lengths[row]]` for its own; length 0 changes nothing. See `prefill`."""
    reading = dict(source=source, source_lengths=source_lengths, is_prefix=is_prefix)
    logits, cache, _ = prefill(model, params, tokens, lengths, state.cache, **reading)
    is_read = lengths > 0
    rows, is_real = jnp.arange(len(lengths))[:, None], jnp.arange(tokens.shape[1]) < lengths[:, None]
    return state.replace(
        cache=cache,
        logits=jnp.where(is_read[:, None], logits, state.logits),
        text=state.text.at[:, : tokens.shape[1]].set(jnp.where(is_real, tokens, state.text[:, : tokens.shape[1]])),
        lengths=jnp.where(is_read, lengths, state.lengths),
        seen=state.seen.at[rows, tokens].max(is_real),
    )


@partial(jax.jit, static_argnames=("model", "num_steps", "eos_id", "sampling", "constraints"), donate_argnames="state")
def decode(
    model: Decoder | EncoderDecoder,
    params: Any,
    state: DecodeState,
    allowed: Bool[Array, "vocab"],
    *,
    num_steps: int,
    eos_id: int,
    sampling: Sampling,
    constraints: Constraints = UNCONSTRAINED,
) -> tuple[DecodeState, Int[Array, "batch num_steps"]]:
    """Write up to `num_steps` tokens in every row that is neither done nor full.

    Only `allowed` tokens are written. A row is done when it has written `eos_id`, or when `constraints` leave it no
    token. The tokens are followed by -1 where a row wrote fewer. The cache of a row that has become full is spent:
    `read` a shorter context to go on; `constraints` then count the n-grams of that.
    """
    rows = jnp.arange(len(state.lengths))

    def is_writing(state: DecodeState) -> Bool[Array, "batch"]:
        return ~state.done & (state.lengths < state.limits)

    def cond_fn(carry):
        step, state, _ = carry
        return (step < num_steps) & is_writing(state).any()

    def body_fn(carry):
        step, state, written = carry
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.num_written)
        text = (state.text, state.lengths, state.num_written)
        logits = constrain(state.logits, allowed, *text, constraints, eos_id)
        tokens = choose(logits, state.seen, keys, sampling)
        is_stuck = is_writing(state) & (logits.max(axis=-1) == -jnp.inf)
        writing = is_writing(state) & ~is_stuck
        log_probabilities = state.logits[rows, tokens] - jax.nn.logsumexp(state.logits, axis=-1)
        # Rows that do not write are computed too; what they put in their next slot is never seen.
        positions = jnp.minimum(state.lengths, state.text.shape[1] - 1)
        logits, cache, _ = decode_step(model, params, tokens, positions, state.cache)
        state = state.replace(
            cache=cache,
            logits=jnp.where(writing[:, None], logits, state.logits),
            text=state.text.at[rows, positions].set(jnp.where(writing, tokens, state.text[rows, positions])),
            lengths=state.lengths + writing,
            seen=state.seen.at[rows, tokens].max(writing),
            num_written=state.num_written + writing,
            log_probability=state.log_probability + jnp.where(writing, log_probabilities, 0),
            done=state.done | (writing & (tokens == eos_id)) | is_stuck,
        )
        return step + 1, state, written.at[:, step].set(jnp.where(writing, tokens, -1))

    nothing = jnp.full((len(rows), num_steps), -1, jnp.int32)
    _, state, written = jax.lax.while_loop(cond_fn, body_fn, (jnp.int32(0), state, nothing))
    return state, written
