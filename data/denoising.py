"""Sequence-to-sequence objectives: a text becomes an input with something missing and a target with it.

T5's span corruption and its inverse, UL2's mixture, BART's text infilling and prefix language modeling; see
`sentences.py` for PEGASUS' gap sentences. Pure functions; inputs and targets are int32, without </s> at the end.
"""

import math

import numpy as np

from data.document import DataError

MODES = ("[R]", "[S]", "[X]")
UL2_SPANS = (  # mode, mean span, rate (Tay et al. 2023, table 1)
    ("[R]", 3.0, 0.15),
    ("[R]", 8.0, 0.15),
    ("[X]", 3.0, 0.5),
    ("[X]", 8.0, 0.5),
    ("[X]", 64.0, 0.15),
    ("[X]", 64.0, 0.5),
)
_S_RATE = 0.25  # of UL2's sequential denoiser, in the mean


# Span corruption


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Returns how many of `length` tokens are corrupted, and in how many spans (T5, section 3.1.4, and its code)."""
    num_noise = min(max(round(length * rate), 1), max(length - 1, 1))
    return num_noise, min(max(round(num_noise / mean_span), 1), max(length - num_noise, 1))


def noise_spans(length: int, rate: float, mean_span: float, random: np.random.Generator) -> np.ndarray:
    """Returns which tokens are corrupted: bool [length].

    As in T5's code, both the corrupted and the kept tokens are cut into the same number of parts, every way of
    doing so being as likely; the parts alternate, beginning with a kept one and ending with a corrupted one.
    """
    if length < 2:
        return np.ones(length, bool)
    num_noise, num_spans = span_counts(length, rate, mean_span)
    sizes = np.empty(2 * num_spans, np.int64)
    sizes[0::2] = _cut(length - num_noise, num_spans, random)
    sizes[1::2] = _cut(num_noise, num_spans, random)
    return np.repeat(np.arange(2 * num_spans) % 2 == 1, sizes)


def _cut(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Returns `parts` positive integers that add up to `total`."""
    cuts = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt(tokens: np.ndarray, is_noise: np.ndarray, sentinel_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (inputs, targets): in the inputs a sentinel for each corrupted span, in the targets it and the span."""
    is_start = is_noise.copy()
    is_start[1:] &= ~is_noise[:-1]
    starts = np.flatnonzero(is_start)
    inputs = tokens.copy()
    inputs[starts] = sentinel_ids[: len(starts)]
    noise = tokens[is_noise]
    sentinels = np.flatnonzero(is_start[is_noise]) + np.arange(len(starts))
    targets = np.empty(len(noise) + len(starts), np.int32)
    is_token = np.ones(len(targets), bool)
    is_token[sentinels] = False
    targets[sentinels], targets[is_token] = sentinel_ids[: len(starts)], noise
    return inputs[~is_noise | is_start], targets


def uncorrupt(inputs: np.ndarray, targets: np.ndarray, sentinel_ids: np.ndarray) -> np.ndarray:
    """Returns the tokens that `corrupt` was given. Raises DataError if these are not its results."""
    starts = np.flatnonzero(np.isin(targets, sentinel_ids))
    places = np.flatnonzero(np.isin(inputs, sentinel_ids))
    if starts[:1].sum() or not np.array_equal(inputs[places], targets[starts]):
        raise DataError("the sentinels of the targets are not those of the inputs, in the same order")
    spans = [span[1:] for span in np.split(targets, starts)[1:]]
    kept = np.split(inputs, places)
    parts = [kept[0]]
    for span, rest in zip(spans, kept[1:], strict=True):
        parts += [span, rest[1:]]
    return np.concatenate(parts)


def ul2_spans(length: int, room: int, sequential_share: float, random: np.random.Generator) -> tuple[str, np.ndarray]:
    """Returns the mode and which tokens are corrupted (bool [length]) by one of UL2's seven denoisers.

    The spans of R and X are those of `noise_spans`, where the paper draws their lengths from a normal
    distribution. S corrupts the end of the text: a quarter of it in the mean, uniformly from what it takes
    for at most `room` tokens to stay before it.
    """
    if random.random() >= sequential_share:
        mode, mean_span, rate = UL2_SPANS[random.integers(len(UL2_SPANS))]
        return mode, noise_spans(length, rate, mean_span, random)
    least = max(1, length - room)
    most = max(least, _longest_s(length) - least)
    return "[S]", np.arange(length) >= length - random.integers(least, most + 1)


def ul2_lengths(length: int) -> list[tuple[int, int]]:
    """Returns the lengths of inputs and targets of each denoiser, </s> included but no mode token.

    For S they are those of its longest target; its inputs have what `room` they are given in `ul2_spans`.
    """
    longest = _longest_s(length)
    s_lengths = (length - longest + 2, longest + 2)
    return [s_lengths, *(span_lengths(length, rate, mean_span) for _, mean_span, rate in UL2_SPANS)]


def _longest_s(length: int) -> int:
    return max(1, math.floor(2 * _S_RATE * length))


def span_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Returns the lengths of inputs and targets of span corruption, </s> included: 568 tokens are 512 and 114."""
    num_noise, num_spans = span_counts(length, rate, mean_span)
    return length - num_noise + num_spans + 1, num_noise + num_spans + 1


# Text infilling


def infill(tokens: np.ndarray, rate: float, mean_span: float, mask_id: int, random: np.random.Generator) -> np.ndarray:
    """Returns `tokens` where spans have been replaced by one mask each, however long they are, also if empty.

    Span lengths are Poisson-distributed and drawn until they cover rate * length tokens exactly, the last one
    being cut short; every arrangement of spans and kept tokens is as likely. BART, section 2.2.
    """
    budget = round(rate * len(tokens))
    if not budget:
        return tokens
    lengths = random.poisson(mean_span, budget)
    while lengths.sum() < budget:
        lengths = np.append(lengths, random.poisson(mean_span, budget))
    covered = np.cumsum(lengths)
    last = int(np.searchsorted(covered, budget))
    lengths[last] -= covered[last] - budget
    lengths = lengths[: last + 1]
    empty = np.flatnonzero(lengths == 0)
    # At most one mask for each token that is taken away, so that no input is longer than the text.
    lengths = np.delete(lengths, empty[max(0, budget - (len(lengths) - len(empty))) :])
    num_slots = len(tokens) - budget + len(lengths)
    masks = np.sort(random.permutation(num_slots)[: len(lengths)])
    sizes = np.ones(num_slots, np.int64)
    sizes[masks] = random.permutation(lengths)
    is_token = np.ones(num_slots, bool)
    is_token[masks] = False
    inputs = np.full(num_slots, mask_id, np.int32)
    inputs[is_token] = tokens[(np.cumsum(sizes) - sizes)[is_token]]
    return inputs


# Prefix


def split_prefix(
    tokens: np.ndarray, inputs_room: int, targets_room: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (start, end) of the text, cut at a place that is uniform among those where both have room."""
    least, most = max(1, len(tokens) - targets_room), min(len(tokens) - 1, inputs_room)
    cut = int(random.integers(least, max(least, most) + 1))
    return tokens[:cut], tokens[cut:]
