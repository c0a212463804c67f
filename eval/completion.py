"""Prompts → completions, streamed, of any length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizer import Tokenizer
from eval.text_stream import TextStream
from model import decoding
from model.decoding import Sampling
from model.transformer import Decoder, EncoderDecoder
from train.config import UserError
from train.objective import Model

_CHUNK_TOKENS = 8  # written on the device between two looks at the text
_BATCH_ROWS = 32


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    finish: "stop" at a stop string, "end" at the end of the document, "length" at `max_new_tokens`.
    tokens: how many tokens were written; a few after a stop string are among them.
    """

    prompt: str
    text: str
    finish: Literal["stop", "end", "length"]
    tokens: int


def generate(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
    max_new_tokens: int = 200,
    samples: int = 1,
    stop: Sequence[str] = (),
    is_prefix: bool = False,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """`samples` completions of each prompt, in the order of the prompts.

    An encoder–decoder reads the prompts with its encoder and answers them. `is_prefix`: a decoder's prompts are
    read as a prefix LM reads them, each token seeing all others.
    A text depends on the seed and its own place among `prompts` and samples, not on the other texts. When the
    model's context is full, its last half is read again and writing goes on. `on_text(index, new_text)` is
    called as soon as text is certain, `index` being the place in the result.

    Raises UserError for impossible arguments and for a model whose logits are not finite.
    """
    _check(model, prompts, seed=seed, max_new_tokens=max_new_tokens, samples=samples, stop=stop)
    rows = []
    for i, prompt in enumerate(prompts):
        source, tokens = _contexts(model, tokenizer, prompt, f"prompt {i + 1}")
        rows += [_Row(prompt, source, tokens, tokenizer, stop, max_new_tokens) for _ in range(samples)]
    keys = _keys(np.uint32(seed), len(prompts), samples)
    for first in range(0, len(rows), _BATCH_ROWS):
        part = slice(first, first + _BATCH_ROWS)

        def report(row: int, text: str, first: int = first) -> None:
            if on_text is not None and text:
                on_text(first + row, text)

        _write(model, params, tokenizer, rows[part], keys[part], sampling, is_prefix, report)
    return [row.completion() for row in rows]


def _contexts(model: Model, tokenizer: Tokenizer, prompt: str, name: str) -> tuple[list[int], list[int]]:
    """What the encoder reads, if there is one, and what the decoder reads before it writes."""
    limit, tokens = model.config.max_length, tokenizer.encode(prompt).tolist()
    if not isinstance(model, EncoderDecoder):
        if len(tokens) + 1 >= limit:
            print(
                f"note: {name} has {len(tokens) + 1} tokens, as many as the model's context or more; "
                f"it reads the last {limit // 2}",
                file=sys.stderr,
            )
        return [], [tokenizer.bos_id, *tokens]
    if len(tokens) >= limit:
        print(f"note: {name} has {len(tokens)} tokens; the encoder reads the first {limit - 1}", file=sys.stderr)
    start = model.config.decoder_start_id
    return [*tokens[: limit - 1], tokenizer.eos_id], [tokenizer.bos_id if start is None else start]


def _check(
    model: Model,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    samples: int,
    stop: Sequence[str],
) -> None:
    problems = []
    if not isinstance(model, Decoder | EncoderDecoder):
        problems.append("the model is an encoder; it reads text but writes none")
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if samples < 1:
        problems.append(f"samples must be at least 1, not {samples}")
    if not 0 <= seed < 2**32:
        problems.append(f"seed must be at least 0 and less than 2^32, not {seed}")
    if "" in stop:
        problems.append("a stop text must not be empty")
    if model.config.max_length < 2:
        problems.append("a model with max_length=1 has no room for a prompt and a new token")
    for i, prompt in enumerate(prompts):
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            problems.append(f"prompt {i + 1} is not valid Unicode")
    if problems:
        raise UserError(*problems)


@partial(jax.jit, static_argnums=(1, 2))
def _keys(seed: np.uint32, num_prompts: int, samples: int) -> jax.Array:
    """One key for each row: [num_prompts * samples]."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(num_prompts))
    fold_samples = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold_samples, in_axes=(0, None))(keys, jnp.arange(samples)).reshape(-1)


class _Row:
    """One text being written."""

    def __init__(
        self,
        prompt: str,
        source: list[int],
        tokens: list[int],
        tokenizer: Tokenizer,
        stop: Sequence[str],
        max_new_tokens: int,
    ):
        self.prompt, self.source, self.text, self.finish = prompt, source, "", None
        self.tokens = list(tokens)  # of prompt and text, without the source
        self._num_prompt_tokens, self.max_tokens = len(tokens), len(tokens) + max_new_tokens
        self._eos_id = tokenizer.eos_id
        self._stream = TextStream(tokenizer, tokens, stop)

    def add(self, tokens: list[int]) -> str:
        """The text that these tokens make certain."""
        tokens = tokens[: self.max_tokens - len(self.tokens)]
        ended = self._eos_id in tokens
        if ended:
            tokens = tokens[: tokens.index(self._eos_id)]
        self.tokens += tokens
        is_long = len(self.tokens) == self.max_tokens
        new = self._stream.push(tokens, last=ended or is_long)
        self.finish = "stop" if self._stream.stopped else "end" if ended else "length" if is_long else None
        self.text += new
        return new

    def context(self, max_length: int) -> list[int]:
        """What the model reads: everything, or the last half of a context where that leaves no room."""
        return self.tokens if len(self.tokens) < max_length else self.tokens[-(max_length // 2) :]

    def completion(self) -> Completion:
        return Completion(self.prompt, self.text, self.finish, len(self.tokens) - self._num_prompt_tokens)


def _write(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    rows: list[_Row],
    keys: jax.Array,
    sampling: Sampling,
    is_prefix: bool,
    report: Callable[[int, str], None],
) -> None:
    """Write all `rows` to their ends, side by side."""
    max_length = model.config.max_length
    longest = max(row.max_tokens for row in rows)
    capacity = decoding.bucket(longest + 1, max_length)
    allowed = _allowed(tokenizer, model.config.vocab_size)
    sources = _padded([row.source for row in rows], model.config.max_length) if rows[0].source else None
    state = decoding.start(model.config, keys, capacity, sources[0].shape[1] if sources else None)
    state = _read(model, params, state, rows, [True] * len(rows), sources, is_prefix)
    while any(row.finish is None for row in rows):
        state, written = decoding.decode(
            model, params, state, allowed, num_steps=_CHUNK_TOKENS, eos_id=tokenizer.eos_id, sampling=sampling
        )
        _check_finite(state)
        for i, (row, tokens) in enumerate(zip(rows, np.asarray(written), strict=True)):
            if row.finish is None:
                report(i, row.add(tokens[tokens >= 0].tolist()))
        unfinished = np.array([row.finish is None for row in rows])
        state = state.replace(done=jnp.asarray(~unfinished))
        full = unfinished & (np.asarray(state.lengths) == capacity)
        if full.any():
            state = _read(model, params, state, rows, full.tolist(), sources, is_prefix)


def _read(
    model: Model,
    params: Any,
    state: decoding.DecodeState,
    rows: list[_Row],
    chosen: list[bool],
    sources: tuple[np.ndarray, np.ndarray] | None,
    is_prefix: bool,
) -> decoding.DecodeState:
    """Read the contexts of the `chosen` rows."""
    max_length = model.config.max_length
    contexts = [row.context(max_length) if wanted else [] for row, wanted in zip(rows, chosen, strict=True)]
    tokens, lengths = _padded(contexts, state.cache.key.shape[2])
    source = dict(zip(("source", "source_lengths"), sources, strict=True)) if sources else {}
    state = decoding.read(model, params, state, tokens, lengths, **source, is_prefix=is_prefix)
    _check_finite(state)
    return state


def _padded(rows: list[list[int]], capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [rows, length], padded on the right to one of few lengths, and the length of each row."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), decoding.bucket(int(lengths.max()), capacity)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def _check_finite(state: decoding.DecodeState) -> None:
    if not bool(jnp.isfinite(state.logits).all()):
        raise UserError("the model's logits are not finite: its parameters are damaged, or its training diverged")


def _allowed(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Tokens that may be written: those that stand for text, and the end of the document. Bool [vocab]."""
    ids = np.arange(vocab_size)
    never = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id]
    never += [] if tokenizer.mask_id is None else [tokenizer.mask_id]
    return (ids < tokenizer.vocab_size) & ~np.isin(ids, never) | (ids == tokenizer.eos_id)
