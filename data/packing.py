"""Which tokens stand in which example: documents → one stream of slots → windows → batches.

A document of n tokens has n + 1 *slots*, the things to predict:

    inputs    <s>  t1  …  tn
    targets   t1   t2  …  </s>

The slots of all documents, one after the other, are the stream; a window is `length` slots of it.
Everything here is a pure function of its arguments, made with NumPy for a whole batch at a time: no state,
no loop over tokens, documents or rows. That is what makes training resumable at any step, on any number of
processes.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from data.document import DataError
from data.token_cache import TokenCache

_KEPT_EPOCHS = 4  # a batch of a tiny corpus can span more; they are then made again


@dataclass(frozen=True)
class Stream:
    """The slots of a cache's documents in a given order.

    Attributes:
      order: int64 [num_documents], the documents in the order of the stream.
      slot_starts: int64 [num_documents + 1], where each of them starts in the stream; the last is its length.
    """

    cache: TokenCache
    order: np.ndarray
    slot_starts: np.ndarray

    @classmethod
    def of(cls, cache: TokenCache, order: np.ndarray) -> "Stream":
        return cls(cache, order, np.concatenate([[0], np.cumsum(cache.lengths[order] + 1)]))

    @property
    def num_slots(self) -> int:
        return int(self.slot_starts[-1])


def windows(
    stream: Stream,
    starts: np.ndarray,
    ends: np.ndarray,
    length: int,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    attend_across_documents: bool,
) -> dict[str, np.ndarray]:
    """Returns the windows of `stream` that start at `starts` and end before `ends`.

    Args:
      starts, ends: int64 [batch]. The stream is taken to repeat: its end is followed by its start. A window
        may have up to `length` slots; it is filled up with padding.

    Returns:
      inputs, targets: int32 [batch, length]; `pad_id` where there is no slot.
      weights: float32 [batch, length]; 1 for a slot, 0 for padding.
      and unless `attend_across_documents`:
      segment_ids: int32 [batch, length]; 1, 2, … for the documents of a window, 0 for padding.
      positions: int32 [batch, length]; 0, 1, … from the start of each document and of the window.
    """
    segments = _segments(stream, starts, ends)
    inputs, targets = _slots(segments, stream.cache, bos_id, eos_id)
    used = ends - starts
    full = bool((used == length).all())
    mask = None if full else np.arange(length) < used[:, None]

    def rows(flat: np.ndarray, padding: int) -> np.ndarray:
        if full:
            return flat.reshape(len(starts), length)
        padded = np.full((len(starts), length), padding, flat.dtype)
        padded[mask] = flat
        return padded

    batch = {"inputs": rows(inputs, pad_id), "targets": rows(targets, pad_id)}
    batch["weights"] = np.ones((len(starts), length), np.float32) if full else mask.astype(np.float32)
    if not attend_across_documents:
        segment_starts = (segments.flat_ends - segments.sizes).astype(np.int32)
        positions = np.arange(len(targets), dtype=np.int32) - np.repeat(segment_starts, segments.sizes)
        batch["segment_ids"] = rows(np.repeat(segments.ids, segments.sizes), 0)
        batch["positions"] = rows(positions, 0)
    return batch


@dataclass(frozen=True)
class _Segments:
    """The parts of documents that lie in the windows, in order; every array is [number of segments]."""

    ids: np.ndarray  # int32: 1, 2, … in each window
    sizes: np.ndarray  # slots of the segment
    offsets: np.ndarray  # the first slot's offset in its document
    num_tokens: np.ndarray  # of the document
    token_starts: np.ndarray  # where the document's tokens start in the cache

    @property
    def flat_ends(self) -> np.ndarray:
        """Where each segment ends among the slots of all segments."""
        return np.cumsum(self.sizes)


def _slots(segments: _Segments, cache: TokenCache, bos_id: int, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs and targets of the segments, one after the other: int32 [sum of their sizes].

    The slot at offset o of a document predicts token o, or at the very end </s>, and sees token o - 1 or <s>.
    """
    first_tokens, ends = segments.token_starts + segments.offsets, segments.flat_ends
    at_end = segments.offsets + segments.sizes == segments.num_tokens + 1
    is_token = np.ones(int(segments.sizes.sum()), bool)
    is_token[ends[at_end] - 1] = False
    targets = np.full(len(is_token), eos_id, np.int32)
    targets[is_token] = cache.take_ranges(first_tokens, segments.sizes - at_end)

    at_start = segments.offsets == 0
    starts, inside = ends - segments.sizes, ~at_start
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    inputs[starts[at_start]] = bos_id
    inputs[starts[inside]] = cache.take_ranges(first_tokens[inside] - 1, np.ones(inside.sum(), np.int64))
    return inputs, targets


def _segments(stream: Stream, starts: np.ndarray, ends: np.ndarray) -> _Segments:
    num_documents, num_slots = len(stream.order), stream.num_slots

    def document_at(slots: np.ndarray) -> np.ndarray:
        """Returns the place in the stream of the document at each slot; the repeated stream counts on."""
        turns, rest = np.divmod(slots, num_slots)
        return turns * num_documents + np.searchsorted(stream.slot_starts, rest, side="right") - 1

    first = document_at(starts)
    counts = np.where(ends > starts, document_at(ends - 1) - first + 1, 0)
    window = np.repeat(np.arange(len(starts)), counts)
    ids = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
    turns, places = np.divmod(first[window] + ids, num_documents)
    document_starts = stream.slot_starts[places] + turns * num_slots
    begin = np.maximum(document_starts, starts[window])
    documents = stream.order[places]
    num_tokens = stream.cache.lengths[documents]
    end = np.minimum(document_starts + num_tokens + 1, ends[window])
    return _Segments(
        ids=(ids + 1).astype(np.int32),
        sizes=end - begin,
        offsets=begin - document_starts,
        num_tokens=num_tokens,
        token_starts=stream.cache.starts[documents],
    )


class TrainWindows:
    """The endless, shuffled sequence of training windows, by random access.

    In each epoch the documents are shuffled, their stream is rotated by a random number of slots, cut into
    windows, and the windows are shuffled. Each epoch has the same number of windows, num_slots // length,
    so that window i belongs to epoch i // num_windows without looking anything up. An epoch therefore shows
    every slot exactly once, but for fewer than `length` that the rotation picks anew in each epoch. A
    stream shorter than one window is a single, padded window.
    """

    def __init__(self, cache: TokenCache, *, length: int, seed: int):
        self.cache, self.length, self.seed = cache, length, seed
        self.num_slots = cache.num_tokens + cache.num_documents
        self.num_windows = max(1, self.num_slots // length)
        self._epochs: OrderedDict[int, tuple[Stream, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return _train_windows, (self.cache, self.length, self.seed)

    def rows(self, first: int, count: int, **specials: object) -> dict[str, np.ndarray]:
        """Returns windows first, first + 1, …, first + count - 1 as a batch; see `windows` for `specials`."""
        parts = []
        while count:
            epoch, window = divmod(first, self.num_windows)
            taken = min(count, self.num_windows - window)
            stream, starts = self._epoch(epoch)
            starts = starts[window : window + taken]
            ends = starts + min(self.length, self.num_slots)
            parts.append(windows(stream, starts, ends, self.length, **specials))
            first, count = first + taken, count - taken
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _epoch(self, epoch: int) -> tuple[Stream, np.ndarray]:
        """Returns the epoch's stream and the start of each of its windows, in their shuffled order."""
        with self._lock:
            if epoch not in self._epochs:
                random = np.random.default_rng((self.seed, epoch))
                stream = Stream.of(self.cache, random.permutation(self.cache.num_documents))
                rotation = int(random.integers(self.num_slots)) if self.num_slots > self.length else 0
                starts = rotation + self.length * random.permutation(self.num_windows)
                self._epochs[epoch] = stream, starts
                while len(self._epochs) > _KEPT_EPOCHS:
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]


def _train_windows(cache: TokenCache, length: int, seed: int) -> TrainWindows:
    return TrainWindows(cache, length=length, seed=seed)


class EvalWindows:
    """The windows that predict every token of a cache exactly once, in order.

    Without `stride` they are one after the other. With it they overlap: each starts `stride` slots after
    the one before and only its last `stride` slots count (all of the first window's), so that every slot
    but the first ones is predicted with at least length - stride tokens of context.
    """

    def __init__(self, cache: TokenCache, *, length: int, stride: int | None = None):
        self.length, self.stride = length, stride or length
        if not 0 < self.stride <= length:
            raise DataError(f"stride must be between 1 and the length {length}, got {stride}")
        self.stream = Stream.of(cache, np.arange(cache.num_documents))
        self.num_windows = 1 + -(-max(0, self.stream.num_slots - length) // self.stride)

    def rows(self, first: int, count: int, **specials: object) -> dict[str, np.ndarray]:
        """Returns windows first, …, first + count - 1; those that do not exist are all padding."""
        numbers = np.arange(first, first + count)
        starts = np.minimum(numbers * self.stride, self.stream.num_slots)
        ends = np.where(numbers < self.num_windows, np.minimum(starts + self.length, self.stream.num_slots), starts)
        batch = windows(self.stream, starts, ends, self.length, **specials)
        predicted_before = np.where(numbers > 0, self.length - self.stride, 0)
        batch["weights"][np.arange(self.length) < predicted_before[:, None]] = 0
        return batch
