"""Masked language modeling: which tokens of a text are chosen, what stands in their place, and pairs of texts.

Pure functions of their arguments; all randomness comes from the generator that they are given.
"""

from collections.abc import Callable

import numpy as np

from data.config import MaskedLM, ReplacedTokens
from data.packing import Text
from data.sentences import SentenceMarks, split_sentences

_OTHER_TEXTS = 8  # how often another document is looked for


def choose_tokens(
    candidates: np.ndarray, word_starts: np.ndarray, objective: MaskedLM | ReplacedTokens, random: np.random.Generator
) -> np.ndarray:
    """Returns which tokens are to be predicted: int32 [length], 0 for those that are not.

    Tokens with the same number were chosen at once. Of n candidates, rate * n are chosen, rounded up or down at
    random so that the expected share is the rate at every length, but at least one. Words are chosen whole; one
    that is longer than what is left to choose is passed over.

    Args:
      candidates: bool [length], False for special tokens.
      word_starts: bool [length]; only read where words are chosen.
    """
    chosen = np.zeros(len(candidates), np.int32)
    budget = objective.rate * np.count_nonzero(candidates)
    budget = max(int(budget) + bool(random.random() < budget % 1), 1)
    if objective.masking == "token":
        places = random.permutation(np.flatnonzero(candidates))[:budget]
        chosen[places] = np.arange(1, len(places) + 1)
        return chosen
    starts = np.flatnonzero(word_starts | ~candidates | np.append(True, ~candidates[:-1]))
    sizes = np.diff(starts, append=len(candidates))
    order = random.permutation(len(starts))
    groups = _choose_words(sizes, candidates[starts], order, _span_lengths(objective, len(starts), random), budget)
    if not groups.any() and candidates.any():  # every word is longer than the budget: a part of one is better than none
        places = np.flatnonzero(candidates)
        start = int(random.integers(max(1, len(places) - budget + 1)))
        chosen[places[start : start + budget]] = 1
        return chosen
    return np.repeat(groups, sizes)


def _choose_words(
    sizes: np.ndarray, candidates: np.ndarray, order: np.ndarray, lengths: np.ndarray, budget: int
) -> np.ndarray:
    """Returns the number of the span that each word is in, or 0: int32 [number of words].

    Spans start at the words of `order` and end early at a word that is taken or special or would exceed the budget.
    """
    groups, sizes, candidates = [0] * len(sizes), sizes.tolist(), candidates.tolist()
    for group, (first, length) in enumerate(zip(order.tolist(), lengths.tolist(), strict=True), start=1):
        for word in range(first, min(first + length, len(sizes))):
            if groups[word] or not candidates[word] or sizes[word] > budget:
                break
            groups[word] = group
            budget -= sizes[word]
        if not budget:
            break
    return np.array(groups, np.int32)


def _span_lengths(objective: MaskedLM | ReplacedTokens, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns how many words each span has: int [count].

    "span" is SpanBERT's geometric distribution without its tail beyond max_span (Joshi et al. 2020, section 3.1),
    "ngram" is ALBERT's p(n) ~ 1/n (Lan et al. 2020, section 4.1).
    """
    if objective.masking == "span":
        p = 1 / objective.mean_span
        weights = (1 - p) ** np.arange(objective.max_span)
    elif objective.masking == "ngram":
        weights = 1 / np.arange(1, objective.max_ngram + 1)
    else:
        return np.ones(count, np.int64)
    cumulative = np.cumsum(weights)
    return 1 + np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")


def hide_tokens(
    tokens: np.ndarray,
    chosen: np.ndarray,
    objective: MaskedLM | ReplacedTokens,
    *,
    mask_id: int,
    ordinary_ids: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:
    """Returns `tokens` (int32 [length]) where the mask, a random token or the token itself stands for the chosen.

    What happens is drawn for each token by itself, but for spans once for all of a span (SpanBERT, section 3.1).
    ELECTRA has no random tokens: what its generator does not see as the mask, it sees as it is.

    Args:
      ordinary_ids: int32, the ids that a random token is drawn from: all but the special ones.
    """
    places = np.flatnonzero(chosen)
    if objective.masking == "span":
        draws = random.random(len(chosen) + 1)[chosen[places]]
    else:
        draws = random.random(len(places))
    random_share = objective.random_share if isinstance(objective, MaskedLM) else 0.0
    is_masked = draws < objective.mask_share
    is_random = ~is_masked & (draws < objective.mask_share + random_share)
    hidden = tokens.copy()
    hidden[places[is_masked]] = mask_id
    hidden[places[is_random]] = ordinary_ids[random.integers(len(ordinary_ids), size=np.count_nonzero(is_random))]
    return hidden


# Pairs


def sentence_pair(
    text: Text,
    marks: SentenceMarks,
    eos_id: int,
    objective: MaskedLM,
    random: np.random.Generator,
    another: Callable[[np.random.Generator], Text],
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Returns (A, B, label); the label is None where no pair could be made.

    A and B are the longest part of a document in the window, cut in two at the end of a random sentence, or
    anywhere if it is a single one. For next_sentence (Devlin et al. 2019, section 3.1) label 1 says that B was
    replaced by as many tokens, if there are as many, from another document; for sentence_order (Lan et al. 2020,
    section 3.1) that A and B were swapped.

    Args:
      another: draws a window; asked for a few times until its longest part is of another document.
    """
    part, document = _longest_part(text, eos_id)
    if len(part) < 2:
        return part, part[:0], None
    cuts = split_sentences(part, np.ones_like(part), marks, eos_id).starts[1:]
    cut = int(random.choice(cuts) if len(cuts) else random.integers(1, len(part)))
    first, second, label = part[:cut], part[cut:], int(random.integers(2))
    if not label:
        return first, second, 0
    if objective.sentence_pairs == "sentence_order":
        return second, first, 1
    for _ in range(_OTHER_TEXTS):
        other, other_document = _longest_part(another(random), eos_id)
        if other_document != document and len(other):
            start = int(random.integers(max(1, len(other) - len(second) + 1)))
            return first, other[start : start + len(second)], 1
    return first, second, None


def _longest_part(text: Text, eos_id: int) -> tuple[np.ndarray, int]:
    """Returns the tokens of the window's longest part of a document, without its end, and the document's number."""
    if not len(text.tokens):
        return text.tokens, -1
    longest = int(np.argmax(np.bincount(text.segment_ids)))
    part = text.tokens[text.segment_ids == longest]
    return part[: len(part) - (part[-1] == eos_id)], int(text.documents[longest - 1])
