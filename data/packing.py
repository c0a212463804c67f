"""Which tokens stand in which example: documents → one stream of slots → windows → batches.

A document of n tokens has n + 1 *slots*, the things to predict:

    inputs    <s>  t1  …  tn
    targets   t1   t2  …  </s>

The slots of all documents, one after the other, are the stream; a window is `length` slots of it.
Everything here is a pure function of its arguments, made with NumPy for a whole batch at a time: no state,
no loop over tokens, documents or rows. That is what makes training resumable at any step, on any number of
processes. An objective that cuts and masks text by itself takes the targets of a window alone, as a `Text`.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
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
class Text:
    """The targets of one window: t1 … tn </s> t1 …, which may begin and end within a document.

    Attributes:
      tokens: int32 [length].
      segment_ids: int32 [length]; 1, 2, … for the documents of the window; </s> belongs to the one that it ends.
      documents: int64 [number of segments]; which document of the cache each is.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    documents: np.ndarray


def texts(stream: Stream, starts: np.ndarray, ends: np.ndarray, *, eos_id: int) -> list[Text]:
    """Returns the `Text` of each window; see `windows` for the arguments."""
    segments = _segments(stream, starts, ends)
    targets = _targets(segments, stream.cache, eos_id)
    segment_ids = np.repeat(segments.ids, segments.sizes)
    slots = np.cumsum([0, *(ends - starts)]).tolist()
    parts = np.cumsum([0, *np.bincount(segments.windows, minlength=len(starts))]).tolist()
    return [
        Text(targets[a:b], segment_ids[a:b], segments.documents[c:d])
        for a, b, c, d in zip(slots[:-1], slots[1:], parts[:-1], parts[1:], strict=True)
    ]


@dataclass(frozen=True)
class _Segments:
    """The parts of documents that lie in the windows, in order; every array is [number of segments]."""

    windows: np.ndarray  # 0, 1, …: the window of the segment
    ids: np.ndarray  # int32: 1, 2, … in each window
    documents: np.ndarray  # the number of the document in the cache
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
    targets = _targets(segments, cache, eos_id)
    at_start = segments.offsets == 0
    starts, inside = segments.flat_ends - segments.sizes, ~at_start
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    inputs[starts[at_start]] = bos_id
    before = segments.token_starts[inside] + segments.offsets[inside] - 1
    inputs[starts[inside]] = cache.take_ranges(before, np.ones(len(before), np.int64))
    return inputs, targets


def _targets(segments: _Segments, cache: TokenCache, eos_id: int) -> np.ndarray:
    at_end = segments.offsets + segments.sizes == segments.num_tokens + 1
    is_token = np.ones(int(segments.sizes.sum()), bool)
    is_token[segments.flat_ends[at_end] - 1] = False
    targets = np.full(len(is_token), eos_id, np.int32)
    targets[is_token] = cache.take_ranges(segments.token_starts + segments.offsets, segments.sizes - at_end)
    return targets


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
        windows=window,
        ids=(ids + 1).astype(np.int32),
        documents=documents,
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

    With `duplicates` the stream is the first epoch's in all, and only the order of the windows is drawn anew:
    the same windows come again, for static masks to come again with them (see `keys`).
    """

    def __init__(self, cache: TokenCache, *, length: int, seed: int, duplicates: int | None = None):
        self.cache, self.length, self.seed, self.duplicates = cache, length, seed, duplicates
        self.num_slots = cache.num_tokens + cache.num_documents
        self.num_windows = max(1, self.num_slots // length)
        self._epochs: OrderedDict[int, tuple[Stream, int, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return _train_windows, (self.cache, self.length, self.seed, self.duplicates)

    def rows(self, first: int, count: int, **specials: object) -> dict[str, np.ndarray]:
        """Returns windows first, first + 1, …, first + count - 1 as a batch; see `windows` for `specials`."""
        parts = [
            windows(stream, starts, self._ends(starts), self.length, **specials)
            for _, stream, starts in self._parts(first, count)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def texts(self, first: int, count: int, *, eos_id: int) -> list[Text]:
        """Returns windows first, first + 1, …, first + count - 1 as texts."""
        return [
            text
            for _, stream, starts in self._parts(first, count)
            for text in texts(stream, starts, self._ends(starts), eos_id=eos_id)
        ]

    def other_text(self, number: int, random: np.random.Generator, *, eos_id: int) -> Text:
        """Returns a random window of the epoch of window `number`, perhaps that window itself."""
        stream, rotation, _ = self._epoch(number // self.num_windows)
        starts = rotation + self.length * random.integers(self.num_windows, size=1)
        return texts(stream, starts, self._ends(starts), eos_id=eos_id)[0]

    def keys(self, first: int, count: int) -> list[int]:
        """Returns what the random choices in each of these windows are drawn by, besides the seed.

        Without `duplicates` it is the number of the window, which never comes again. With them it is
        made of where the window starts in the one stream and of the epoch modulo `duplicates`: a text
        has `duplicates` different masks, each of which comes again after that many epochs.
        """
        if self.duplicates is None:
            return list(range(first, first + count))
        parts = [starts * self.duplicates + epoch % self.duplicates for epoch, _, starts in self._parts(first, count)]
        return np.concatenate(parts).tolist()

    def _parts(self, first: int, count: int) -> Iterator[tuple[int, Stream, np.ndarray]]:
        """Yields (epoch, stream, starts) for the windows first, …, first + count - 1, epoch by epoch."""
        while count:
            epoch, window = divmod(first, self.num_windows)
            taken = min(count, self.num_windows - window)
            stream, _, starts = self._epoch(epoch)
            yield epoch, stream, starts[window : window + taken]
            first, count = first + taken, count - taken

    def _ends(self, starts: np.ndarray) -> np.ndarray:
        return starts + min(self.length, self.num_slots)

    def _epoch(self, epoch: int) -> tuple[Stream, int, np.ndarray]:
        """Returns the epoch's stream, its rotation, and the start of each of its windows, in their shuffled order."""
        with self._lock:
            if epoch not in self._epochs:
                random = np.random.default_rng((self.seed, epoch if self.duplicates is None else 0))
                stream = Stream.of(self.cache, random.permutation(self.cache.num_documents))
                rotation = int(random.integers(self.num_slots)) if self.num_slots > self.length else 0
                if self.duplicates is not None:
                    random = np.random.default_rng((self.seed, 1, epoch))
                starts = rotation + self.length * random.permutation(self.num_windows)
                self._epochs[epoch] = stream, rotation, starts
                while len(self._epochs) > _KEPT_EPOCHS:
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]


def _train_windows(cache: TokenCache, length: int, seed: int, duplicates: int | None) -> TrainWindows:
    return TrainWindows(cache, length=length, seed=seed, duplicates=duplicates)


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
        batch = windows(self.stream, *self._bounds(numbers), self.length, **specials)
        predicted_before = np.where(numbers > 0, self.length - self.stride, 0)
        batch["weights"][np.arange(self.length) < predicted_before[:, None]] = 0
        return batch

    def texts(self, first: int, count: int, *, eos_id: int) -> list[Text]:
        """Returns windows first, …, first + count - 1 as texts; those that do not exist are empty."""
        return texts(self.stream, *self._bounds(np.arange(first, first + count)), eos_id=eos_id)

    def other_text(self, number: int, random: np.random.Generator, *, eos_id: int) -> Text:
        """Returns a random window, perhaps window `number` itself."""
        return texts(self.stream, *self._bounds(random.integers(self.num_windows, size=1)), eos_id=eos_id)[0]

    def keys(self, first: int, count: int) -> list[int]:
        """Returns the numbers of the windows: a text is masked alike in every evaluation."""
        return list(range(first, first + count))

    def _bounds(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.minimum(numbers * self.stride, self.stream.num_slots)
        ends = np.where(numbers < self.num_windows, np.minimum(starts + self.length, self.stream.num_slots), starts)
        return starts, ends
