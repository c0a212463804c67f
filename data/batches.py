"""Windows of tokens → the examples of an objective → batches.

An objective is a pure function of one window's tokens and a random generator. The generator is made from a key
that depends on the seed and on the number of the example alone, so that no example depends on the batch size, the
number of hosts and workers, or where a run went on. `BatchMaker` makes the windows of a batch into examples one by
one and pads them into arrays. Which arrays there are depends on the objective:

    causal_lm, prefix_lm            inputs targets weights [segment_ids positions] [prefix]
    masked_lm, replaced_tokens      inputs targets weights segment_ids positions
                                    with pairs: sentence_ids sentence_targets sentence_weights
    all others                      encoder_inputs encoder_segment_ids encoder_positions
                                    decoder_inputs decoder_targets decoder_weights
                                    decoder_segment_ids decoder_positions

All are [batch, length] or [batch, target_length], but for sentence_targets and sentence_weights, which are [batch].
A decoder alone can be trained by the last group, too: then input and target are one row, as in prefix_lm. And an
encoder-decoder can be trained by prefix_lm: then the prefix is its input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from data import denoising, masking
from data.config import UL2, CausalLM, MaskedLM, Objective, PrefixLM, ReplacedTokens, SpanCorruption, TextInfilling
from data.document import DataError
from data.objectives import Stack, derived_target_length, example_lengths, has_pairs, objective_tokenizer, text_length
from data.packing import EvalWindows, Text, TrainWindows
from data.rows import Batch, one_row, padded, positions, sequence_to_sequence
from data.sentences import SentenceMarks, gap_sentences, permute, split_sentences
from data.tokenizer import Tokenizer
from data.words import chinese_word_starts


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of an objective's examples from windows of `text_length` tokens.

    Attributes:
      length: of the rows; of the encoder's where there is one and a decoder.
      stack: what is trained; an encoder-decoder has rows of its own for the target, a decoder has one row for both.
      target_length: of the decoder's rows beside an encoder; None is `derived_target_length`.
      decoder_start_id: the first of the decoder's inputs; None is the tokenizer's bos_id.
      seed: of all that is random within an example.
    """

    objective: Objective
    tokenizer: Tokenizer
    length: int
    attend_across_documents: bool
    seed: int
    stack: Stack = "decoder"
    target_length: int | None = None
    decoder_start_id: int | None = None

    def __post_init__(self):
        needed = objective_tokenizer(self.tokenizer, self.objective, self.length)
        if needed is not self.tokenizer:
            raise DataError(
                f"the objective {self.objective.kind} needs special tokens that the tokenizer lacks; "
                "objective_tokenizer adds them"
            )

    @property
    def text_length(self) -> int:
        """Tokens of a window."""
        return text_length(self.objective, self.length, self.stack, self.target_length)

    def batch(self, windows: TrainWindows | EvalWindows, first: int, count: int) -> Batch:
        """Returns examples first, …, first + count - 1."""
        objective, eos_id = self.objective, self.tokenizer.eos_id
        if isinstance(objective, CausalLM):
            return self._windows(windows, first, count)
        keys = windows.keys(first, count)
        randoms = [np.random.Generator(np.random.Philox(key=self._key(key))) for key in keys]
        if isinstance(objective, PrefixLM) and self.stack != "encoder_decoder":
            return with_prefixes(self._windows(windows, first, count), randoms)
        texts = windows.texts(first, count, eos_id=eos_id)
        if isinstance(objective, MaskedLM | ReplacedTokens):
            others = [partial(windows.other_text, number, eos_id=eos_id) for number in range(first, first + count)]
            return self._masked([self._masked_row(*each) for each in zip(texts, randoms, others, strict=True)])
        pairs = [self._denoised(text, random) for text, random in zip(texts, randoms, strict=True)]
        ids = {
            "start_id": self.tokenizer.bos_id if self.decoder_start_id is None else self.decoder_start_id,
            "pad_id": self.tokenizer.pad_id,
        }
        if self.stack == "encoder_decoder":
            return sequence_to_sequence(pairs, self.length, self._target_length, **ids)
        return one_row(pairs, self.length, **ids)

    def _key(self, key: int) -> np.ndarray:
        # Philox is a block cipher of a counter: keys that differ in one bit give independent streams (Salmon et al.
        # 2011), so a key needs no hashing of its own and a generator is made in ten microseconds.
        return np.array([self._hashed_seed, key], np.uint64)

    @cached_property
    def _hashed_seed(self) -> int:
        return int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0])

    def _windows(self, windows: TrainWindows | EvalWindows, first: int, count: int) -> Batch:
        return windows.rows(
            first,
            count,
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            pad_id=self.tokenizer.pad_id,
            attend_across_documents=self.attend_across_documents,
        )

    # The vocabulary

    @cached_property
    def _sentinels(self) -> np.ndarray:
        return np.array(self.tokenizer.sentinel_ids, np.int32)

    @cached_property
    def _ordinary_ids(self) -> np.ndarray:
        return np.array(sorted(set(range(self.tokenizer.vocab_size)) - self.tokenizer.special_ids), np.int32)

    @cached_property
    def _sentence_marks(self) -> SentenceMarks:
        return SentenceMarks.of(self.tokenizer)

    def _word_starts(self, tokens: np.ndarray) -> np.ndarray:
        starts = self.tokenizer.word_starts(tokens)
        if self.objective.masking == "chinese_whole_word":
            return chinese_word_starts(self.tokenizer.pieces(tokens), starts)
        return starts

    # Rows of an encoder

    def _masked_row(
        self, text: Text, random: np.random.Generator, another: Callable[[np.random.Generator], Text]
    ) -> "_MaskedRow":
        """[bos] text [eos], or [bos] A [eos] B [eos]; nothing at all for an empty text."""
        objective, tokenizer = self.objective, self.tokenizer
        bos, eos = np.array([[tokenizer.bos_id], [tokenizer.eos_id]], np.int32)
        label, sentences = None, text.tokens[:0]
        if not len(text.tokens):
            tokens = segments = text.tokens
        elif has_pairs(objective):
            pair = masking.sentence_pair(text, self._sentence_marks, tokenizer.eos_id, objective, random, another)
            first, second, label = pair
            tokens = np.concatenate([bos, first, eos, second, eos] if len(second) else [bos, first, eos])
            segments = np.ones(len(tokens), np.int32)
            sentences = (np.arange(len(tokens)) > len(first) + 1).astype(np.int32)
        else:
            body = _without_final(text.tokens, tokenizer.eos_id)
            tokens = np.concatenate([bos, body, eos])
            ids = np.ones_like(text.segment_ids) if self.attend_across_documents else text.segment_ids
            segments = np.concatenate([ids[:1], ids[: len(body)], ids[-1:]])
        candidates = (tokens != tokenizer.eos_id) & (tokens != tokenizer.bos_id)
        word_starts = candidates if objective.masking == "token" else self._word_starts(tokens)
        chosen = masking.choose_tokens(candidates, word_starts, objective, random)
        hidden = masking.hide_tokens(
            tokens, chosen, objective, mask_id=tokenizer.mask_id, ordinary_ids=self._ordinary_ids, random=random
        )
        return _MaskedRow(hidden, tokens, chosen > 0, segments, sentences, label)

    def _masked(self, rows: list["_MaskedRow"]) -> Batch:
        pad_id = self.tokenizer.pad_id
        segments = padded([row.segment_ids for row in rows], self.length)
        batch = {
            "inputs": padded([row.inputs for row in rows], self.length, pad_id),
            "targets": padded([row.targets for row in rows], self.length, pad_id),
            "weights": padded([row.chosen for row in rows], self.length).astype(np.float32),
            "segment_ids": segments,
            "positions": positions(segments),
        }
        if has_pairs(self.objective):
            batch["sentence_ids"] = padded([row.sentence_ids for row in rows], self.length)
            batch["sentence_targets"] = np.array([row.label or 0 for row in rows], np.int32)
            batch["sentence_weights"] = np.array([row.label is not None for row in rows], np.float32)
        return batch

    # Rows of an input and a target

    def _denoised(self, text: Text, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns (inputs, targets) with </s> at the end of both; nothing at all for an empty text."""
        objective, tokenizer = self.objective, self.tokenizer
        tokens = _without_final(text.tokens, tokenizer.eos_id)
        mode = ()
        if not len(tokens):
            return tokens, tokens
        if isinstance(objective, SpanCorruption):
            is_noise = denoising.noise_spans(len(tokens), objective.rate, objective.mean_span, random)
            inputs, targets = denoising.corrupt(tokens, is_noise, self._sentinels)
        elif isinstance(objective, UL2):
            room = self.length - 2 - objective.mode_tokens if self.stack == "encoder_decoder" else len(tokens)
            name, is_noise = denoising.ul2_spans(len(tokens), room, objective.sequential_share, random)
            inputs, targets = denoising.corrupt(tokens, is_noise, self._sentinels)
            mode = (tokenizer.named[name],) if objective.mode_tokens else ()
        elif isinstance(objective, PrefixLM):
            inputs, targets = denoising.split_prefix(tokens, self.length - 1, self._target_length - 1, random)
        else:
            segment_ids = text.segment_ids[: len(tokens)]
            sentences = split_sentences(tokens, segment_ids, self._sentence_marks, tokenizer.eos_id)
            if isinstance(objective, TextInfilling):
                noisy = permute(sentences, random) if objective.permute_sentences else tokens
                targets = tokens
                inputs = denoising.infill(noisy, objective.rate, objective.mean_span, tokenizer.mask_id, random)
            else:
                room = self._target_length - 1
                inputs, targets = gap_sentences(objective, sentences, room, tokenizer.mask_id, random)
        eos = np.array([tokenizer.eos_id], np.int32)
        return np.concatenate([np.array(mode, np.int32), inputs, eos]), np.concatenate([targets, eos])

    @cached_property
    def _target_length(self) -> int:
        """The most tokens of a target, </s> included."""
        if self.stack == "encoder_decoder":
            return self.target_length or derived_target_length(self.objective, self.length)
        return max(targets for _, targets in example_lengths(self.objective, self.text_length))


@dataclass(frozen=True)
class _MaskedRow:
    """One example of masked language modeling, not yet padded; every array is [tokens]."""

    inputs: np.ndarray
    targets: np.ndarray
    chosen: np.ndarray
    segment_ids: np.ndarray
    sentence_ids: np.ndarray
    label: int | None


def with_prefixes(batch: Batch, randoms: list[np.random.Generator]) -> Batch:
    """Returns causal `batch` with a random prefix of each document's part, which is not predicted.

    Of n inputs the first 1, …, n, each as likely, are the prefix, so that at least one token is predicted: the
    first of them is the one after the prefix. Where tokens attend across documents, the window is one text.

    Adds prefix, bool [batch, length], True for the inputs that belong to a prefix.
    """
    used = batch["weights"] > 0
    segment_ids = batch.get("segment_ids", used.astype(np.int64))
    positions = batch.get("positions", np.broadcast_to(np.arange(used.shape[1]), used.shape))
    sizes = [np.bincount(row)[1:] for row in segment_ids]
    splits = [random.integers(1, row_sizes + 1) for random, row_sizes in zip(randoms, sizes, strict=True)]
    ends = np.zeros((len(sizes), 1 + max(map(len, splits), default=0)), np.int64)
    for row, row_splits in enumerate(splits):
        ends[row, 1 : 1 + len(row_splits)] = row_splits
    end = np.take_along_axis(ends, segment_ids, axis=1)  # of the prefix of each input's document; 0 for padding
    return {
        **batch,
        "weights": np.where(positions >= end - 1, batch["weights"], np.float32(0)),
        "prefix": positions < end,
    }


def _without_final(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    return tokens[:-1] if len(tokens) and tokens[-1] == eos_id else tokens
