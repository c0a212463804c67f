"""Prompts → completions, streamed, of any length."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizer import Tokenizer
from eval.batch_decoding import Prompt, decode_all, keys_of, padded
from eval.text_stream import TextStream
from model import decoding
from model.beam_search import BeamSearch
from model.decoding import UNCONSTRAINED, Constraints, Sampling
from model.transformer import Decoder, EncoderDecoder
from train.command_line import nearest
from train.config import UserError
from train.objective import Model

_CHUNK_TOKENS = 8  # written on the device between two looks at the text
_BATCH_ROWS = 32
_MAX_NOTES = 5


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    finish: "stop" at a stop string, "end" at the end of the document, "length" at `max_new_tokens`, or before that
        where a text that does not go on has filled the context or the constraints leave no token.
    tokens: how many tokens were written; a few after a stop string are among them.
    score: `hypothesis_score` of a beam search; None for a sample, and where no text obeys the constraints.
    """

    prompt: str
    text: str
    finish: Literal["stop", "end", "length"]
    tokens: int
    score: float | None = None


def generate(
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int] | Prompt],
    *,
    sampling: Sampling | BeamSearch = Sampling(),  # noqa: B008 (frozen)
    constraints: Constraints = UNCONSTRAINED,
    seed: int = 0,
    max_new_tokens: int = 200,
    samples: int = 1,
    stop: Sequence[str] = (),
    eos_id: int | None = None,
    is_prefix: bool = False,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """`samples` completions of each prompt, or the `n_best` of a beam search, in the order of the prompts.

    A prompt is a text; or a list of token ids, which a decoder reads as they are; or the `Prompt` of a source, as
    `source_reader.py` makes it. An encoder–decoder reads a text as a source, as in pretraining. `is_prefix`: a
    decoder's prompts are read as a prefix LM reads them, each token seeing all others.
    `eos_id`: the token that ends a text in place of the tokenizer's; no other special token is then written.
    A text depends on the seed and its own place among `prompts` and samples, not on the other texts. When the
    model's context is full, its last half is read again and writing goes on, but a beam search and a text from a
    source end there.
    `on_text(index, new_text)` is called as soon as text is certain, `index` being the place in the result.

    Raises UserError for impossible arguments and for a model whose logits are not finite.
    """
    is_search = isinstance(sampling, BeamSearch)
    if is_search and samples != 1:
        raise UserError(
            f"samples={samples} is for sampling; of a beam search, n_best={sampling.n_best} texts are given"
        )
    _check(model, prompts, seed=seed, max_new_tokens=max_new_tokens, samples=samples, stop=stop)
    ends = tokenizer.eos_id if eos_id is None else eos_id
    allowed = allowed_tokens(tokenizer, model.config.vocab_size, eos_id)
    rows, notes, each = [], [], sampling.n_best if is_search else samples
    for i, prompt in enumerate(prompts):
        source, tokens, goes_on = _contexts(model, tokenizer, prompt, f"prompt {i + 1}", notes)
        prompt = prompt if isinstance(prompt, str) else tokenizer.decode(source or tokens)
        room = max_new_tokens if goes_on else min(max_new_tokens, model.config.max_length - len(tokens))
        before = tokens if goes_on else []  # the start of a text that answers a source follows no other
        rows += [_Row(prompt, source, tokens, TextStream(tokenizer, before, stop), ends, room) for _ in range(each)]
    print_notes(notes)

    def report(index: int, text: str) -> None:
        if on_text is not None and text:
            on_text(index, text)

    shared = dict(allowed=allowed, eos_id=ends, constraints=constraints, is_prefix=is_prefix)
    if is_search:
        _search(model, params, rows, sampling, max_new_tokens, report, **shared)
    else:
        keys = _sample_keys(keys_of(seed, range(len(prompts))), samples)
        order = np.argsort([len(row.source) + len(row.tokens) for row in rows], kind="stable")
        for first in range(0, len(rows), _BATCH_ROWS):  # texts of like length stand side by side
            part = order[first : first + _BATCH_ROWS]
            chosen = {int(index): rows[index] for index in part}
            _write(model, params, chosen, keys[part], sampling, report, **shared)
    return [row.completion() for row in rows]


def print_notes(notes: Sequence[str]) -> None:
    """The first few on stderr, and how many there are more."""
    for note in notes[:_MAX_NOTES]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > _MAX_NOTES:
        print(f"note: so it is with {len(notes) - _MAX_NOTES} more", file=sys.stderr)


def plain_source(model: Model, tokenizer: Tokenizer, tokens: Sequence[int]) -> Prompt:
    """What an encoder–decoder reads in pretraining: the source with its end, and the decoder's start."""
    start = tokenizer.bos_id if model.config.decoder_start_id is None else model.config.decoder_start_id
    return [*tokens, tokenizer.eos_id], [start]


def _contexts(
    model: Model, tokenizer: Tokenizer, prompt: str | list[int] | Prompt, name: str, notes: list[str]
) -> tuple[list[int], list[int], bool]:
    """What encoder and decoder read before they write, and whether the text goes on when the context is full.

    `notes` tell what is cut.
    """
    if isinstance(prompt, tuple):
        return list(prompt[0] or ()), list(prompt[1]), False
    if isinstance(prompt, list):
        return [], prompt, True
    limit, tokens = model.config.max_length, tokenizer.encode(prompt).tolist()
    if not isinstance(model, EncoderDecoder):
        if len(tokens) + 1 >= limit:
            reads = f"as many as the model's context or more; it reads the last {limit // 2}"
            notes.append(f"{name} has {len(tokens) + 1} tokens, {reads}")
        return [], [tokenizer.bos_id, *tokens], True
    if len(tokens) >= limit:
        notes.append(f"{name} has {len(tokens)} tokens; the encoder reads the first {limit - 1}")
    return *plain_source(model, tokenizer, tokens[: limit - 1]), False


def _check(
    model: Model,
    prompts: Sequence[str | list[int] | Prompt],
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
    if seed < 0:
        problems.append(f"seed must be at least 0, not {seed}")
    if "" in stop:
        problems.append("a stop text must not be empty")
    if model.config.max_length < 2:
        problems.append("a model with max_length=1 has no room for a prompt and a new token")
    for i, prompt in enumerate(prompts):
        try:
            if isinstance(prompt, str):
                prompt.encode("utf-8")
        except UnicodeEncodeError:
            problems.append(f"prompt {i + 1} is not valid Unicode")
    if problems:
        raise UserError(*problems)


@partial(jax.jit, static_argnums=1)
def _sample_keys(keys: jax.Array, samples: int) -> jax.Array:
    """One key for each row, [prompts * samples], from those of the prompts."""
    fold_samples = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold_samples, in_axes=(0, None))(keys, jnp.arange(samples)).reshape(-1)


class _Row:
    """One text being written."""

    def __init__(
        self,
        prompt: str,
        source: list[int],
        tokens: list[int],
        stream: TextStream,
        eos_id: int,
        max_new_tokens: int,
    ):
        self.prompt, self.source, self.text, self.finish = prompt, source, "", None
        self.tokens = list(tokens)  # of prompt and text, without the source
        self._num_prompt_tokens, self.max_tokens = len(tokens), len(tokens) + max_new_tokens
        self._eos_id, self.score = eos_id, None
        self._stream = stream

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

    def end(self) -> str:
        """The text that is certain where nothing follows."""
        new = self._stream.push([], last=True)
        self.finish = "stop" if self._stream.stopped else "length"
        self.text += new
        return new

    def context(self, max_length: int) -> list[int]:
        """What the model reads: everything, or the last half of a context where that leaves no room."""
        return self.tokens if len(self.tokens) < max_length else self.tokens[-(max_length // 2) :]

    def completion(self) -> Completion:
        return Completion(self.prompt, self.text, self.finish, len(self.tokens) - self._num_prompt_tokens, self.score)


def _search(
    model: Model,
    params: Any,
    rows: list[_Row],
    beams: BeamSearch,
    max_new_tokens: int,
    report: Callable[[int, str], None],
    *,
    eos_id: int,
    **shared: Any,
) -> None:
    """Give the `rows`, `n_best` of each prompt, the texts that a beam search finds."""
    prompts = [(row.source or None, row.context(model.config.max_length)) for row in rows[:: beams.n_best]]
    limit = dict(max_new_tokens=max_new_tokens, eos_id=eos_id, batch_size=_BATCH_ROWS)
    found = decode_all(model, params, prompts, method=beams, **limit, **shared)
    for i, (row, hypothesis) in enumerate(zip(rows, chain.from_iterable(found), strict=True)):
        row.score = hypothesis.score if math.isfinite(hypothesis.score) else None
        text = row.add(hypothesis.tokens + [eos_id] * hypothesis.finished)
        report(i, text if row.finish else text + row.end())


def _write(
    model: Model,
    params: Any,
    texts: dict[int, _Row],
    keys: jax.Array,
    sampling: Sampling,
    report: Callable[[int, str], None],
    *,
    eos_id: int,
    is_prefix: bool,
    **shared: Any,
) -> None:
    """Write all `texts` to their ends, side by side; the keys of the dict are for `report`."""
    max_length, rows = model.config.max_length, list(texts.values())
    longest = max(row.max_tokens for row in rows)
    capacity = decoding.bucket(longest + 1, max_length)
    sources = _padded([row.source for row in rows], model.config.max_length) if rows[0].source else None
    state = decoding.start(model.config, keys, capacity, sources[0].shape[1] if sources else None)
    state = _read(model, params, state, rows, [True] * len(rows), sources, is_prefix)
    while any(row.finish is None for row in rows):
        state, written = decoding.decode(
            model, params, state, num_steps=_CHUNK_TOKENS, eos_id=eos_id, sampling=sampling, **shared
        )
        _check_finite(state)
        for (index, row), tokens, is_done in zip(texts.items(), *map(np.asarray, (written, state.done)), strict=True):
            if row.finish is None:
                report(index, row.add(tokens[tokens >= 0].tolist()))
                if is_done and row.finish is None:  # the constraints leave no token
                    report(index, row.end())
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
    """`padded` to one of few lengths."""
    return padded(rows, len(rows), decoding.bucket(max(map(len, rows)), capacity))


def _check_finite(state: decoding.DecodeState) -> None:
    if not bool(jnp.isfinite(state.logits).all()):
        raise UserError("the model's logits are not finite: its parameters are damaged, or its training diverged")


def token_of(tokenizer: Tokenizer, name: str) -> int:
    """The id of a token by its name. Raises UserError where there is none."""
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    if name not in pieces:
        raise UserError(f"first_token: the tokenizer has no token {name!r}.{nearest(name, tokenizer.named)}")
    return pieces.index(name)


def allowed_tokens(tokenizer: Tokenizer, vocab_size: int, eos_id: int | None) -> np.ndarray:
    """Tokens that may be written: those that stand for text, and the end of the document. Bool [vocab].

    With an end of its own, `eos_id`, a text has no other special token.
    """
    ids = np.arange(vocab_size)
    if eos_id is None:
        eos_id, never = tokenizer.eos_id, [tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id]
        never += [] if tokenizer.mask_id is None else [tokenizer.mask_id]
    else:
        never = sorted(tokenizer.special_ids)
    return (ids < tokenizer.vocab_size) & ~np.isin(ids, never) | (ids == eos_id)
