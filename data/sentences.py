"""Sentences of tokens: where they end, shuffling them (BART), and the important ones among them (PEGASUS)."""

from dataclasses import dataclass

import numpy as np

from data.config import GapSentences
from data.tokenizer import Tokenizer

_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(frozen=True)
class SentenceMarks:
    """What the tokens of a vocabulary say about sentences.

    It is a heuristic that needs no language: a token sees no abbreviation. It reads the text of each token alone,
    not its display name, in which a newline may be another character.

    Attributes:
      ends: bool [vocab_size]; the text ends in one of . ! ? 。 ！ ？ or holds a newline.
      words: bool [vocab_size]; the text has a letter, a digit or a part of a character, or the token is special.
    """

    ends: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SentenceMarks":
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        ends = [text.rstrip(" ").endswith(_ENDS) or "\n" in text for text in texts]
        words = np.array([any(c.isalnum() or c == "\ufffd" for c in text) for text in texts], bool)
        words[list(tokenizer.special_ids)] = True
        return cls(np.array(ends, bool), words)


@dataclass(frozen=True)
class Sentences:
    """A text in sentences; each </s> within it counts as one of its own.

    Attributes:
      tokens: int32 [length].
      numbers: int64 [length], which sentence each token belongs to: 0, 1, … in order.
      starts: int64 [number of sentences], the first token of each.
      segments: int32 [number of sentences], which document of the window each is of: 1, 2, …
      is_text: bool [number of sentences], False for </s>.
    """

    tokens: np.ndarray
    numbers: np.ndarray
    starts: np.ndarray
    segments: np.ndarray
    is_text: np.ndarray


def split_sentences(tokens: np.ndarray, segment_ids: np.ndarray, marks: SentenceMarks, eos_id: int) -> Sentences:
    """Returns the sentences of a text (int32 [length], length > 0).

    A sentence ends before </s>, and after the last token that ends one before the next word: so "?!" and a full
    stop with a quote and a line end after it end one sentence, and none is without words.

    Args:
      segment_ids: int32 [length], the document that each token is of.
    """
    places = np.flatnonzero(marks.ends[tokens])
    words = np.cumsum(marks.words[tokens])
    before, until_next = words[places], np.append(words[places], words[-1])[1:]
    ends, is_eos = np.zeros(len(tokens), bool), tokens == eos_id
    ends[places[(before > 0) & (until_next > before)]] = True
    ends[:-1] |= is_eos[1:]
    ends |= is_eos
    starts = np.flatnonzero(np.append(True, ends[:-1]))
    return Sentences(tokens, np.cumsum(ends) - ends, starts, segment_ids[starts], ~is_eos[starts])


def permute(sentences: Sentences, random: np.random.Generator) -> np.ndarray:
    """Returns the tokens with the sentences of each document shuffled; </s> stays at its end.

    Lewis et al. 2020 (BART), section 2.2.
    """
    keys = np.where(sentences.is_text, random.random(len(sentences.starts)), 1.0)
    order = np.lexsort((keys, sentences.segments))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return sentences.tokens[np.argsort(rank[sentences.numbers], kind="stable")]


def gap_sentences(
    objective: GapSentences, sentences: Sentences, target_room: int, mask_id: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the text with a mask for each chosen sentence, the chosen sentences in their order).

    Zhang et al. 2020 (PEGASUS), section 3.1. The best sentences are chosen, as long as they fit `target_room`
    tokens; the very best one always is, if need be with its end cut off in the target. `keep_share` of the chosen
    ones stay in the text, where they can be copied from.
    """
    count = np.count_nonzero(sentences.is_text)
    rate = objective.rate if objective.min_rate is None else random.uniform(objective.min_rate, objective.rate)
    scores = np.where(sentences.is_text, _importance(objective, sentences, random), -np.inf)
    best = np.argsort(-scores, kind="stable")[: max(1, int(rate * count))]
    sizes = np.diff(sentences.starts, append=len(sentences.tokens))
    fits = np.cumsum(sizes[best]) <= target_room
    fits[0] = True
    is_gap = np.zeros(len(sizes), bool)
    is_gap[best[fits]] = True
    targets = sentences.tokens[is_gap[sentences.numbers]][:target_room]
    is_gap &= random.random(len(sizes)) >= objective.keep_share
    inputs, kept = sentences.tokens.copy(), ~is_gap[sentences.numbers]
    inputs[sentences.starts[is_gap]] = mask_id
    kept[sentences.starts] = True
    return inputs[kept], targets


def _importance(objective: GapSentences, sentences: Sentences, random: np.random.Generator) -> np.ndarray:
    count = len(sentences.starts)
    if objective.selection == "random":
        return random.random(count)
    if objective.selection == "lead":
        return -np.arange(count, dtype=np.float64)
    return rouge_1(sentences) * random.uniform(1 - objective.noise, 1 + objective.noise, count)


def rouge_1(sentences: Sentences) -> np.ndarray:
    """Returns the ROUGE-1 F1 of each sentence against the rest of its document: float64 [number of sentences].

    Over token ids, each counted as often as it occurs, and each sentence scored by itself: the paper's "Ind-Orig".
    """
    shape = len(sentences.starts), len(vocabulary := np.unique(sentences.tokens))
    words = np.searchsorted(vocabulary, sentences.tokens)
    own = np.bincount(sentences.numbers * shape[1] + words, minlength=shape[0] * shape[1]).reshape(shape)
    own[~sentences.is_text] = 0
    documents = np.zeros((int(sentences.segments.max()) + 1, shape[1]), own.dtype)
    np.add.at(documents, sentences.segments, own)
    rest = documents[sentences.segments] - own
    return 2 * np.minimum(own, rest).sum(1) / np.maximum(own.sum(1) + rest.sum(1), 1)
