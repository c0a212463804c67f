"""Examples of a task → batches.

The arrays of a batch, int32 unless said, with b examples of at most l tokens:

    classification   inputs segment_ids positions [sentence_ids]   targets [b]          weights float32 [b]
    regression       inputs segment_ids positions [sentence_ids]   targets float32 [b]  weights float32 [b]
    tagging          inputs segment_ids positions                  targets [b, l]       weights float32 [b, l]
    span_answering   inputs segment_ids positions sentence_ids     targets [b, 2]       weights float32 [b]
    text_to_text     as text_infilling, see `batches.py`
    dialogue         inputs targets weights segment_ids positions, all [b, l]

Weights are those of the classes in training, 1 in evaluation, 1 at the first token of each word in tagging, and 0 for
rows that only fill up the last batch. Batches for evaluation also hold `example` [b], the number of the example among
the Examples, -1 where a row fills up.

l is `padded_length` of the longest row of the whole batch, so that few programs are compiled.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data.augmentation import Augmenter
from data.examples import Examples
from data.rows import Batch, is_token, one_row, padded, positions, sequence_to_sequence
from data.task_config import (
    Augmentation,
    Classification,
    Dialogue,
    Regression,
    SpanAnswering,
    Tagging,
    TextToText,
)
from data.task_encoding import Row

_POOL = 64  # batches whose examples are sorted by length
_LEAST = 16


def padded_length(length: int, most: int) -> int:
    """Returns the least of 16, 24, 32, 48, 64, 96, … that holds `length`, but never more than `most`."""
    step = _LEAST
    while step < length:
        step = step * 3 // 2 if step & (step - 1) == 0 else step * 4 // 3
    return min(step, most)


@dataclass(frozen=True)
class ExampleOrder:
    """Which examples are in which batch: a permutation an epoch, every example once, like lengths together.

    The sequence of all examples is cut into batches of `batch_size`, across the ends of epochs. Within an epoch it is
    a random permutation, of which every 64 batches are sorted by length, cut into batches and these shuffled.

    Attributes:
      lengths: int [examples].
    """

    lengths: np.ndarray
    batch_size: int
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the examples of a batch and the epoch of each: int64 [batch_size]."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(places, len(self.lengths))
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            numbers[epochs == epoch] = self._epoch(int(epoch))[within[epochs == epoch]]
        return numbers, epochs

    def _epoch(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            if len(self._orders) >= 4:  # threads work on neighbouring batches, so on two epochs at most
                self._orders.clear()
            order = self._orders[epoch] = self._make_epoch(epoch)
        return order

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """Returns the examples in the order of an epoch."""
        size, batch = len(self.lengths), self.batch_size
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(size)
        start = min(-epoch * size % batch, size)  # these end the batch that the epoch before has begun
        end = start + (size - start) // batch * batch
        for first in range(start, end, _POOL * batch):
            pool = order[first : min(first + _POOL * batch, end)]
            by_length = pool[np.argsort(self.lengths[pool], kind="stable")]
            order[first : first + len(pool)] = random.permutation(by_length.reshape(-1, batch)).ravel()
        return order


@dataclass(frozen=True)
class TaskBatchMaker:
    """Makes the batches of `examples`.

    Attributes:
      is_training: with class weights and augmentation.
      seed: of the augmentation.
      decoder_start_id: the first of the decoder's inputs; None is the tokenizer's bos_id.
    """

    examples: Examples
    is_training: bool
    seed: int = 0
    decoder_start_id: int | None = None

    def batch(self, numbers: np.ndarray, epochs: np.ndarray, part: slice = slice(None)) -> Batch:
        """Returns the rows `part` of the batch of the examples `numbers`, -1 for a row that fills up."""
        if self._augmenter is not None and self._augmenter.edits_words:  # all rows are made to know the longest
            rows = [self._row(*each) for each in zip(numbers, epochs, strict=True)]
            lengths = {name: np.array([len(row[name]) for row in rows]) for name in rows[0]}
            rows = rows[part]
        else:
            rows = [self._row(*each) for each in zip(numbers[part], epochs[part], strict=True)]
            real = numbers[numbers >= 0]
            lengths = {name: column.lengths[real] for name, column in self.examples.columns.items()}
        batch = self._padded(rows, lengths)
        return batch if self.is_training else {**batch, "example": numbers[part].astype(np.int32)}

    def _row(self, number: int, epoch: int) -> Row:
        if number < 0:
            return {name: column.values[:0] for name, column in self.examples.columns.items()}
        if self._augmenter is None:
            return self.examples.row(number)
        return self._augmenter.row(int(number), int(epoch))

    @cached_property
    def _augmenter(self) -> Augmenter | None:
        changes = self.is_training and self.examples.augmentation != Augmentation()
        return Augmenter(self.examples, self.seed) if changes else None

    @property
    def _pad_id(self) -> int:
        return self.examples.encoder.tokenizer.pad_id

    def _padded(self, rows: list[Row], lengths: dict[str, np.ndarray]) -> Batch:
        """`lengths` are those of all rows of the batch, of which `rows` are a part."""
        objective = self.examples.objective
        if isinstance(objective, TextToText):
            return self._text_to_text(rows, lengths)
        if isinstance(objective, Dialogue):
            return self._dialogue(rows, lengths)
        length = padded_length(int(lengths["inputs"].max()), self.examples.encoder.length)
        batch = self._inputs([row["inputs"] for row in rows], length)
        if "sentence_ids" in self.examples.columns:
            batch["sentence_ids"] = padded([row["sentence_ids"] for row in rows], length)
        is_real = np.array([len(row["inputs"]) > 0 for row in rows], np.float32)
        if isinstance(objective, Tagging):
            batch["targets"] = padded([row["targets"] for row in rows], length)
            batch["weights"] = (padded([row["words"] for row in rows], length, -1) >= 0).astype(np.float32)
        elif isinstance(objective, SpanAnswering):
            batch |= {"targets": padded([row["targets"] for row in rows], 2), "weights": is_real}
        else:
            targets = np.array([row["target"][0] if len(row["target"]) else 0 for row in rows])
            batch["targets"] = targets.astype(np.float32 if isinstance(objective, Regression) else np.int32)
            weights = self._class_weights[batch["targets"]] if isinstance(objective, Classification) else 1
            batch["weights"] = is_real * weights
        return batch

    def _inputs(self, rows: list[np.ndarray], length: int) -> Batch:
        used = is_token(rows, length)
        return {
            "inputs": padded(rows, length, self._pad_id),
            "segment_ids": used.astype(np.int32),
            "positions": positions(used),
        }

    @cached_property
    def _class_weights(self) -> np.ndarray:
        """float32 [labels]; balanced: n / (labels * n of the label), so that the mean over the examples is 1."""
        objective = self.examples.objective
        if not self.is_training or objective.class_weights == "none":
            return np.ones(len(objective.labels), np.float32)
        if objective.class_weights != "balanced":
            return np.array(objective.class_weights, np.float32)
        counts = np.bincount(self.examples.columns["target"].values, minlength=len(objective.labels))
        return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)

    @property
    def decoder_prompt(self) -> list[int]:
        """Returns what the decoder reads, after a source that it has to read itself, before it writes a text."""
        encoder = self.examples.encoder
        start = encoder.tokenizer.bos_id if self.decoder_start_id is None else self.decoder_start_id
        if encoder.stack == "decoder":
            return [start]
        # What an official template puts before a text is written, too, unless the decoder starts with it.
        return [start, *(i for i in encoder.template.before if i != start)]

    def _text_to_text(self, rows: list[Row], lengths: dict[str, np.ndarray]) -> Batch:
        encoder, (start, *before) = self.examples.encoder, self.decoder_prompt
        ids = {"start_id": start, "pad_id": self._pad_id}
        if encoder.stack == "decoder":
            length = padded_length(int((lengths["sources"] + lengths["targets"]).max()), encoder.length)
            batch = one_row([(row["sources"], row["targets"]) for row in rows], length, **ids)
            # When a text is to be written, `start` is read with the source, so that all tokens of both see it.
            is_start = (batch["weights"] > 0) & (np.cumsum(batch["weights"], axis=1) == 1)
            return {**batch, "prefix": batch["prefix"] | is_start}
        head = np.array(before, np.int32)
        targets = [np.concatenate([head, row["targets"]]) if len(row["targets"]) else row["targets"] for row in rows]
        return sequence_to_sequence(
            [(row["sources"], target) for row, target in zip(rows, targets, strict=True)],
            padded_length(int(lengths["sources"].max()), encoder.length),
            padded_length(int(lengths["targets"].max()) + len(before), encoder.target_length or encoder.length),
            **ids,
        )

    def _dialogue(self, rows: list[Row], lengths: dict[str, np.ndarray]) -> Batch:
        length = padded_length(int(lengths["tokens"].max()) - 1, self.examples.encoder.length)
        batch = self._inputs([row["tokens"][:-1] for row in rows], length)
        batch["targets"] = padded([row["tokens"][1:] for row in rows], length, self._pad_id)
        batch["weights"] = padded([row["learned"][1:] for row in rows], length).astype(np.float32)
        return batch
