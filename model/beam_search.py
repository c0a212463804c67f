"""Beam search: the best texts by a score of the whole text, of a decoder or an encoder–decoder, for a batch at once.

    hypotheses = beam_search(model, params, tokens, lengths, limits, allowed,
                             beams=BeamSearch(beam_size=4), max_new_tokens=64, eos_id=3)

Every step looks at the best continuations of the live hypotheses, by log P alone. Those among the first `beam_size`
that end, with the end of the text or at the row's limit, go to a pool that keeps the `beam_size` best by their score;
the best that do not end live on. Equals are taken in the order of hypothesis, then token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model.attention import KVCache
from model.decoding import UNCONSTRAINED, Constraints, constrain, decode_step, prefill
from model.transformer import Decoder, EncoderDecoder


@dataclass(frozen=True)
class BeamSearch:
    """How texts are searched for, and by what score the best are chosen; see `hypothesis_score`.

    beam_size: hypotheses kept at every step.
    length_penalty: alpha of the division by length (Wu et al. 2016, equation 14); 0 prefers short texts, more longer.
    length_normalization: "gnmt" divides by ((5 + length) / 6) ** alpha, as there; "power" by length ** alpha, as
        Hugging Face and fairseq do.
    coverage_penalty: beta of the penalty on source tokens that got little attention (equation 14); needs an encoder.
    num_groups: groups of beam_size / num_groups hypotheses, each searched with less wish for the tokens that the
        groups before it have just written (diverse beam search, Vijayakumar et al. 2018).
    diversity_penalty: lambda of that, taken off the log P of a token for each of the best continuations of an earlier
        group that has it at this step (Hamming diversity, section 4). It guides the choice and is no part of the score.
    early_stopping: a search ends when "first": as many texts have ended as there are hypotheses, which each group
        finds out for itself; "bound": no live hypothesis can come before the last of as many ended ones; "never": all
        are as long as allowed, with the result of "bound".
    n_best: texts returned.

    Hugging Face's early_stopping=True is "first" and its "never" is "bound"; its False, a guess that texts do not grow
    much longer, has no counterpart. A forced first token counts in our scores, as in fairseq's, but not in theirs.

    Raises ValueError for a value that means nothing.
    """

    beam_size: int = 4
    length_penalty: float = 0.0
    length_normalization: Literal["gnmt", "power"] = "gnmt"
    coverage_penalty: float = 0.0
    num_groups: int = 1
    diversity_penalty: float = 0.0
    early_stopping: Literal["first", "bound", "never"] = "bound"
    n_best: int = 1

    def __post_init__(self):
        for name in ("beam_size", "num_groups", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("length_penalty", "coverage_penalty", "diversity_penalty"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(self, name)}")
        if self.beam_size % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} does not divide beam_size={self.beam_size}")
        if self.diversity_penalty and self.num_groups == 1:
            raise ValueError("diversity_penalty acts between groups; it needs num_groups of at least 2")
        if self.n_best > self.beam_size:
            raise ValueError(f"n_best={self.n_best} is more than beam_size={self.beam_size}")
        if self.length_normalization not in ("gnmt", "power"):
            raise ValueError(f"length_normalization must be gnmt or power, not {self.length_normalization}")
        if self.early_stopping not in ("first", "bound", "never"):
            raise ValueError(f"early_stopping must be first, bound or never, not {self.early_stopping}")


def hypothesis_score(
    log_probability: Float[Array, "*texts"],
    length: Int[Array, "*#texts"] | int,
    beams: BeamSearch,
    coverage: Float[Array, "*texts source"] | None = None,
) -> Float[Array, "*texts"]:
    """log P(Y|X) / ((5 + |Y|) / 6)^alpha + beta * sum_i log(min(sum_j p_ij, 1)) (Wu et al. 2016, equation 14).

    `log_probability` is that of the model for the tokens written, whatever was allowed; the end of the text is one of
    them, and counts in their number `length`. `coverage` is sum_j p_ij, the attention that source token i got over
    all tokens written: the weights in the last layer that each was predicted from, averaged over heads. Padding of
    the source has coverage 1; None leaves this term out.
    """
    length = jnp.asarray(length, jnp.float32)
    base = (5 + length) / 6 if beams.length_normalization == "gnmt" else length
    score = log_probability / base**beams.length_penalty
    if coverage is None:
        return score
    logs = jnp.log(jnp.clip(coverage, jnp.finfo(jnp.float32).tiny, 1))  # attention may underflow to 0
    return score + beams.coverage_penalty * logs.sum(axis=-1)


@flax.struct.dataclass
class Hypotheses:
    """What a search found, best first."""

    tokens: Int[Array, "batch texts length"]
    """Without the prompt; -1 after the end, which is `eos_id` where the text has one."""
    scores: Float[Array, "batch texts"]
    """-inf where there are fewer texts; NaN where the model's logits were not finite."""


@flax.struct.dataclass
class _Texts:
    """Hypotheses of all groups; a text is a prompt and what follows it, as the cache holds them."""

    tokens: Int[Array, "batch groups size capacity"]
    lengths: Int[Array, "batch groups size"]
    """Tokens written."""
    scores: Float[Array, "batch groups size"]
    """-inf: no such text."""


@flax.struct.dataclass
class _Search:
    """Everything that changes while hypotheses grow; rows are batch * groups * size, in this order."""

    step: Int[Array, ""]
    """Tokens written by every live hypothesis."""
    cache: KVCache
    logits: Float[Array, "rows vocab"]
    """Of the next token, float32."""
    live: _Texts
    """The live hypotheses; their scores are log P."""
    coverage: Float[Array, "batch groups size source"] | None
    """Attention to each source token so far, the prediction of the next token included; None where nothing asks."""
    ended: _Texts
    """The best that have ended, best first."""
    is_finite: Bool[Array, "batch"]
    """Whether all logits of a row's live hypotheses were."""


@partial(jax.jit, static_argnames=("model", "beams", "constraints", "max_new_tokens", "eos_id", "is_prefix"))
def beam_search(
    model: Decoder | EncoderDecoder,
    params: Any,
    tokens: Int[Array, "batch length"],
    lengths: Int[Array, "batch"],
    limits: Int[Array, "batch"],
    allowed: Bool[Array, "vocab"],
    *,
    beams: BeamSearch,
    max_new_tokens: int,
    eos_id: int,
    constraints: Constraints = UNCONSTRAINED,
    source: Int[Array, "batch source"] | None = None,
    source_lengths: Int[Array, "batch"] | None = None,
    is_prefix: bool = False,
) -> Hypotheses:
    """The `n_best` continuations of each prompt `tokens[row, :lengths[row]]`, of up to `limits[row]` tokens.

    `max_new_tokens` is the largest limit that can be given; a row of limit 0 stays empty. Only `allowed` tokens are
    written. `source` and `is_prefix` are those of `prefill`. Raises ValueError for a coverage penalty without encoder.
    """
    with_attention = beams.coverage_penalty > 0
    if with_attention and not isinstance(model, EncoderDecoder):
        raise ValueError("coverage_penalty needs an encoder–decoder, whose source it is about")
    batch, capacity = len(lengths), tokens.shape[1] + max_new_tokens
    shape = (batch, beams.num_groups, beams.beam_size // beams.num_groups)
    cache = KVCache.empty(model.config, batch, capacity, None if source is None else source.shape[1])
    reading = dict(source=source, source_lengths=source_lengths, is_prefix=is_prefix, with_attention=with_attention)
    logits, cache, attention = prefill(model, params, tokens, lengths, cache, **reading)
    if with_attention:
        attention += jnp.arange(source.shape[1]) >= source_lengths[:, None]  # padding is covered
        attention = jnp.broadcast_to(attention[:, None, None], (*shape, source.shape[1]))
    prompts = jnp.pad(tokens, ((0, 0), (0, max_new_tokens)))
    prompts = jnp.broadcast_to(prompts[:, None, None], (*shape, capacity))
    nothing = _Texts(prompts, jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf))
    # All hypotheses are the prompt as yet, so one of each group stands for all.
    first = jnp.where(limits > 0, 0, -jnp.inf)[:, None]
    state = _Search(
        step=jnp.int32(0),
        cache=cache.repeat(beams.beam_size),
        logits=jnp.repeat(logits, beams.beam_size, axis=0),
        live=nothing.replace(scores=nothing.scores.at[:, :, 0].set(first)),
        coverage=attention,
        ended=nothing,
        is_finite=jnp.ones(batch, bool),
    )

    def cond_fn(state: _Search):
        return (state.live.scores > -jnp.inf).any()

    def body_fn(state: _Search):
        totals, is_finite = _continuations(state, lengths, allowed, constraints, eos_id)
        state, tokens, rows = _advance(state, _choose(totals, beams, eos_id), lengths, limits, beams, eos_id)
        positions = jnp.minimum(jnp.repeat(lengths, beams.beam_size) + state.step - 1, capacity - 1)
        logits, cache, attention = decode_step(
            model, params, tokens, positions, state.cache.take(rows), with_attention=with_attention
        )
        coverage = state.coverage + attention.reshape(state.coverage.shape) if with_attention else None
        return state.replace(cache=cache, logits=logits, coverage=coverage, is_finite=state.is_finite & is_finite)

    return _best(jax.lax.while_loop(cond_fn, body_fn, state), lengths, beams, max_new_tokens)


def _continuations(
    state: _Search,
    prompt_lengths: Int[Array, "batch"],
    allowed: Bool[Array, "vocab"],
    constraints: Constraints,
    eos_id: int,
) -> tuple[Float[Array, "batch groups size vocab"], Bool[Array, "batch"]]:
    """log P of each live hypothesis with each token after it, -inf where that must not be; whether all is finite."""
    shape, rows = state.live.scores.shape, len(state.logits)
    normalizers = jax.nn.logsumexp(state.logits, axis=-1)
    lengths = jnp.repeat(prompt_lengths, rows // shape[0]) + state.step
    text, written = state.live.tokens.reshape(rows, -1), jnp.broadcast_to(state.step, rows)
    steps = constrain(state.logits - normalizers[:, None], allowed, text, lengths, written, constraints, eos_id)
    is_live = state.live.scores > -jnp.inf  # the others' logits mean nothing
    totals = jnp.where(is_live[..., None], state.live.scores[..., None] + steps.reshape(*shape, -1), -jnp.inf)
    is_finite = jnp.isfinite(normalizers).reshape(shape) | ~is_live
    return totals, is_finite.all(axis=(1, 2))


@flax.struct.dataclass
class _Choice:
    """The best 2 * size continuations of each group, best first: at most `size` of them end a text with `eos_id`."""

    parents: Int[Array, "*groups candidates"]
    tokens: Int[Array, "*groups candidates"]
    log_probabilities: Float[Array, "*groups candidates"]
    """Of the whole text."""
    survivors: Int[Array, "*groups size"]
    """Places of the first that do not end."""


def _choose(totals: Float[Array, "batch groups size vocab"], beams: BeamSearch, eos_id: int) -> _Choice:
    batch, groups, size, vocab = totals.shape
    times_written = jnp.zeros((batch, vocab))  # by the groups before, at this step
    choices = []
    for group in range(groups):
        flat = totals[:, group].reshape(batch, -1)
        wishes = totals[:, group] - beams.diversity_penalty * times_written[:, None]
        _, best = jax.lax.top_k(wishes.reshape(batch, -1), 2 * size)
        log_probabilities = jnp.take_along_axis(flat, best, axis=1)
        parents, tokens = jnp.divmod(best, vocab)
        survivors = jnp.argsort(tokens == eos_id, axis=1, stable=True)[:, :size]
        choices.append(_Choice(parents, tokens, log_probabilities, survivors))
        written, is_text = tokens[:, :size], log_probabilities[:, :size] > -jnp.inf
        times_written = times_written.at[jnp.arange(batch)[:, None], written].add(is_text)
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *choices)


_pick = jax.vmap(jax.vmap(lambda x, places: x[places]))
"""`x[batch, group, places[batch, group]]`, whatever dims follow."""


def _advance(
    state: _Search,
    choice: _Choice,
    prompt_lengths: Int[Array, "batch"],
    limits: Int[Array, "batch"],
    beams: BeamSearch,
    eos_id: int,
) -> tuple[_Search, Int[Array, "rows"], Int[Array, "rows"]]:
    """Ended texts into the pool, the others a token longer; and of these the token, and the row of the text before."""
    batch, groups, size = state.live.scores.shape
    length, at_limit = state.step + 1, (state.step + 1 >= limits)[:, None, None]
    text = _pick(state.live.tokens, choice.parents)
    is_new = jnp.arange(text.shape[-1]) == (prompt_lengths + state.step)[:, None, None, None]
    texts = _Texts(
        tokens=jnp.where(is_new, choice.tokens[..., None], text),
        lengths=jnp.full_like(choice.tokens, length),
        scores=choice.log_probabilities,
    )
    coverage = None if state.coverage is None else _pick(state.coverage, choice.parents)

    # What ends must be among the best of all, or any text would lead to one of a single token.
    has_ended = ((choice.tokens == eos_id) | at_limit) & (jnp.arange(2 * size) < size)
    scores = hypothesis_score(texts.scores, length, beams, coverage)
    new = texts.replace(scores=jnp.where(has_ended, scores, -jnp.inf))
    pool = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), state.ended, new)
    ended = jax.tree.map(lambda x: _pick(x, jax.lax.top_k(pool.scores, size)[1]), pool)

    live = jax.tree.map(lambda x: _pick(x, choice.survivors), texts)
    worst, best = ended.scores[..., -1:], live.scores.max(axis=-1, keepdims=True)
    stops = at_limit
    if beams.early_stopping == "first":
        stops |= worst > -jnp.inf
    elif beams.early_stopping == "bound":
        # Longer texts have a lower log P and a larger divisor, and no penalty is above 0: no score can exceed this.
        # Until this is true of all groups, each goes on for the sake of those it is to differ from.
        is_settled = hypothesis_score(best, limits[:, None, None], beams) <= worst
        stops |= is_settled.all(axis=1, keepdims=True)
    state = state.replace(
        step=length,
        live=live.replace(scores=jnp.where(stops, -jnp.inf, live.scores)),
        coverage=None if coverage is None else _pick(coverage, choice.survivors),
        ended=ended,
    )
    first_rows = size * jnp.arange(batch * groups).reshape(batch, groups, 1)
    rows = first_rows + _pick(choice.parents, choice.survivors)
    return state, _pick(choice.tokens, choice.survivors).reshape(-1), rows.reshape(-1)


def _best(state: _Search, prompt_lengths: Int[Array, "batch"], beams: BeamSearch, max_new_tokens: int) -> Hypotheses:
    """The best texts of all groups together."""
    batch = len(prompt_lengths)
    scores, best = jax.lax.top_k(state.ended.scores.reshape(batch, -1), beams.n_best)
    texts = state.ended.tokens.reshape(batch, beams.beam_size, -1)
    lengths = jnp.take_along_axis(state.ended.lengths.reshape(batch, -1), best, axis=1)
    places = jnp.arange(max_new_tokens)
    written = jax.vmap(lambda text, rows, start: text[rows][:, start + places])(texts, best, prompt_lengths)
    tokens = jnp.where(places < lengths[..., None], written, -1)
    return Hypotheses(tokens, jnp.where(state.is_finite[:, None], scores, jnp.nan))
