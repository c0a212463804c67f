"""A split of a task's records, tokenized and in memory."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import tokenizer as tokenizers
from data.augmentation import read_synonyms
from data.config import DataConfig, Files, HuggingFace, Source
from data.document import DataError, Skipped
from data.objectives import Stack, objective_tokenizer
from data.records import Record, read_records
from data.task_config import Augmentation, Records, Task
from data.task_encoding import Row, TaskEncoder
from data.tasks import checked, inputs, is_held_out, roles
from data.tokenizer import Tokenizer

Report = Callable[[str], None]


@dataclass(frozen=True)
class Column:
    """Arrays of one dim and unequal length, end to end: row i is values[offsets[i] : offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "Column":
        return cls(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    @property
    def lengths(self) -> np.ndarray:
        """Returns int64 [rows]."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class Examples:
    """The examples of one split, in the order of its records.

    Attributes:
      encoder: made the examples, and makes those of augmented records.
      key: hash (hexadecimal) of the records, the tokenizer and the options that decide the examples.
      records: as `tasks.checked` makes them.
      record_of: int32 [examples], the number of each example's record; a record may have several examples.
      columns: the arrays of all examples by name, see `task_encoding`.
      lengths: int32 [examples], tokens of the longest of an example's rows.
      truncated: number of texts that were cut to fit.
      augmentation: what changes at random when an example is trained on; for training records alone.
    """

    encoder: TaskEncoder
    key: str
    records: Sequence[Record]
    record_of: np.ndarray
    columns: dict[str, Column]
    lengths: np.ndarray
    truncated: int
    augmentation: Augmentation = Augmentation()

    def __len__(self) -> int:
        return len(self.record_of)

    @property
    def objective(self) -> Task:
        return self.encoder.objective

    def row(self, index: int) -> Row:
        """Returns the arrays of example `index`."""
        return {name: column.row(index) for name, column in self.columns.items()}


def read_examples(
    config: DataConfig,
    split: str,
    objective: Task,
    tokenizer: Tokenizer,
    *,
    stack: Stack,
    report: Report = lambda line: None,
) -> Examples:
    """Returns the examples of the split "train", "validation" or "test".

    Where `config.validation` is empty, `config.held_out_fraction` of the training records are for validation, chosen
    by a hash of their inputs, so that equal inputs are on one side.

    Args:
      tokenizer: special tokens that the task needs and it lacks are added.
      report: is called with lines that tell how many records were read, skipped and cut.

    Raises DataError for bad input, or a split without a record.
    """
    records = split_records(config, split, objective, report)
    return make_examples(config, split, records, objective, tokenizer, stack=stack, report=report)


def split_records(config: DataConfig, split: str, objective: Task, report: Report) -> list[Record]:
    """Returns the checked records of a split; raises DataError where there is none."""
    return read_splits(config, [split], objective, report)[split]


def read_splits(config: DataConfig, splits: Sequence[str], objective: Task, report: Report) -> dict[str, list[Record]]:
    """Returns `split_records` of each split, and reads no file twice."""
    found: dict[str, tuple[list[Record], Skipped]] = {}
    records = {}
    for split in splits:
        fraction = config.held_out_fraction if not config.validation and split != "test" else 0.0
        source = "train" if fraction else split
        if source not in found:
            found[source] = _read(getattr(config, source), source, objective, config)
        read, skipped = found[source]
        is_validation = split == "validation"
        kept = [r for r in read if not fraction or is_held_out(r, objective, fraction) == is_validation]
        first = f", the first: {skipped.messages[0]}" if skipped.count else ""
        if not kept:
            names = ", ".join(getattr(each, "path", each.kind) for each in getattr(config, source))
            counts = f"{len(read):,} read, {skipped.count:,} bad ones skipped{first}"
            raise DataError(f"{names}: there is no record for {split} ({counts})")
        told = f"; {skipped.count:,} bad records skipped{first}" if skipped.count else ""
        report(f"{split}: {len(kept):,} records{told}")
        records[split] = kept
    return records


def _read(sources: Sequence[Source], split: str, objective: Task, config: DataConfig) -> tuple[list[Record], Skipped]:
    if not sources:
        raise DataError(f"data.{split} names no records")
    skipped = Skipped()
    return [record for source in sources for record in _checked_records(source, objective, config, skipped)], skipped


def _checked_records(source: Source, objective: Task, config: DataConfig, skipped: Skipped) -> Iterator[Record]:
    if isinstance(source, Files) and source == Files(path=source.path, on_error=source.on_error):
        source = Records(path=source.path, on_error=source.on_error)  # as a path alone is written
    if not isinstance(source, Records | HuggingFace):
        raise DataError(
            f"{source.kind} has no labelled records; the task {objective.kind} needs sources of the kind records "
            "or huggingface"
        )
    bad = skipped.handler(getattr(source, "on_error", "fail"))
    for record in read_records(source, roles(objective), skipped):
        try:
            yield checked(record, objective, config.cleaning)
        except DataError as error:
            bad(str(error))


def make_examples(
    config: DataConfig,
    split: str,
    records: Sequence[Record],
    objective: Task,
    tokenizer: Tokenizer,
    *,
    stack: Stack,
    report: Report = lambda line: None,
) -> Examples:
    """Returns the examples of checked `records`; see `read_examples`."""
    tokenizer = objective_tokenizer(tokenizer, objective, config.length)
    encoder = TaskEncoder(objective, tokenizer, stack, config.length, config.target_length)
    cut: Counter[str] = Counter()
    rows, record_of = [], []
    for number, made in enumerate(encoder.rows(records, cut)):
        rows += made
        record_of += [number] * len(made)
    for field, count in cut.items():
        if count:
            report(f"{split}: {count:,} of {len(records):,} {field} fields were cut to fit")
    augmentation = config.augmentation if split == "train" else Augmentation()
    for row, number in zip(rows, record_of, strict=True):
        if row.keys() != rows[0].keys():
            raise DataError(f"{records[number].origin}: either all records have a second_text, or none")
    columns = {name: Column.of([row[name] for row in rows]) for name in rows[0]}
    return Examples(
        encoder=encoder,
        key=_key(records, encoder, augmentation),
        records=records,
        record_of=np.array(record_of, np.int32),
        columns=columns,
        lengths=_lengths(columns, stack),
        truncated=sum(cut.values()),
        augmentation=augmentation,
    )


def _lengths(columns: dict[str, Column], stack: Stack) -> np.ndarray:
    if "sources" in columns:
        both = (columns["sources"].lengths, columns["targets"].lengths)
        return (np.add(*both) if stack == "decoder" else np.maximum(*both)).astype(np.int32)
    if "tokens" in columns:
        return (columns["tokens"].lengths - 1).astype(np.int32)
    return columns["inputs"].lengths.astype(np.int32)


def _key(records: Iterable[Record], encoder: TaskEncoder, augmentation: Augmentation) -> str:
    """Not of paths: a run can go on where its data lie in another folder."""
    options = {
        "objective": encoder.objective.model_dump(mode="json"),
        "tokenizer": tokenizers.fingerprint(encoder.tokenizer),
        "stack": encoder.stack,
        "length": encoder.length,
        "target_length": encoder.target_length,
        "augmentation": augmentation.model_dump(mode="json", exclude={"synonyms"}),
    }
    if augmentation.synonyms:
        options["synonyms"] = read_synonyms(Path(augmentation.synonyms))
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for record in records:
        digest.update(json.dumps(record.fields, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def overlap(train: Examples, other: Examples) -> int:
    """Returns how many records of `other` ask what a training record asks, but for case, white space and Unicode."""
    seen = {_digest(record, train.objective) for record in train.records}
    return sum(_digest(record, other.objective) in seen for record in other.records)


def _digest(record: Record, objective: Task) -> bytes:
    return hashlib.blake2b(inputs(record, objective).encode(), digest_size=16).digest()
