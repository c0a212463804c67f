"""From a DataConfig to batches: tokenizer, token caches, and iterators that resume exactly.

The global batch `step` is a pure function of the cache, the seed, the length and the batch size. Each
process takes its rows of it, so the global order does not depend on how many processes there are, nor on
how many workers load data, and the whole state of an iterator is the number of the next batch.
"""

import os
import shutil
import socket
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from data import config as configs
from data import sources as reading
from data import tokenizer as tokenizers
from data.cache import Split, build, content_key, why_empty
from data.cleaning import clean
from data.config import DataConfig
from data.document import DataError, Skipped
from data.packing import EvalWindows, TrainWindows
from data.token_cache import TokenCache
from data.tokenizer import Tokenizer
from data.workers import exit_with_parent

Batch = dict[str, np.ndarray]

_NUM_BATCHES = 2**40  # of an endless iterator; grain wants a number


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and the tokens it made; `validation` is None where nothing is held out."""

    tokenizer: Tokenizer
    train: TokenCache
    validation: TokenCache | None


def prepare(
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Returns the tokenizer and the caches of `config`, making what is not yet in `config.cache_dir`.

    Args:
      tokenizer: is used as it is, so that a run that goes on never trains another; None trains or loads one.
      report: is called with lines that tell what is going on.

    Raises DataError for bad input.
    """
    hold_out = not config.validation and config.held_out_fraction > 0
    train_split = Split(config.held_out_fraction, "train") if hold_out else None
    if tokenizer is None:
        tokenizer = _tokenizer(config, train_split, report)

    def cache(sources: tuple[configs.Source, ...], split: Split | None) -> TokenCache:
        how = {"split": split, "processes": config.tokenizer_processes, "report": report}
        return build(sources, config.cleaning, tokenizer, config.cache_dir, **how)

    train = cache(config.train, train_split)
    if config.validation:
        return Corpus(tokenizer, train, cache(config.validation, None))
    validation = cache(config.train, Split(config.held_out_fraction, "validation")) if hold_out else None
    return Corpus(tokenizer, train, validation)


def _tokenizer(config: DataConfig, split: Split | None, report: Callable[[str], None]) -> Tokenizer:
    """Returns the trained tokenizer from the cache folder, or trains it on the training documents."""
    if isinstance(config.tokenizer, configs.SentencePiece) and config.tokenizer.path is not None:
        return tokenizers.load(config.tokenizer.path)
    if isinstance(config.tokenizer, configs.Bytes):
        return tokenizers.train(config.tokenizer, iter(()))
    choice = config.tokenizer.model_dump()
    key = content_key(config.train, config.cleaning, config.cache_dir, split, tokenizer=choice)
    folder = Path(config.cache_dir) / f"tokenizer-{key[:16]}"
    if not folder.exists():
        report("training the tokenizer")
        trained = tokenizers.train(config.tokenizer, _texts(config, split))
        temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        trained.save(temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another process trained the same one meanwhile
            shutil.rmtree(temporary)
    return tokenizers.load(folder)


def _texts(config: DataConfig, split: Split | None) -> Iterator[str]:
    """Yields the cleaned training documents; raises DataError if there are none."""
    skipped, read, kept = Skipped(), 0, 0
    for source in config.train:
        for document in reading.read(source, skipped):
            text = clean(document.text, config.cleaning)
            read += 1
            if split is not None:
                text = split.select(text)
            if text.strip():
                kept += 1
                yield text
    if not kept:
        raise DataError(why_empty(config.train, split, num_documents=read, num_skipped=skipped.count))


# Batches


class Batches(Iterator[Batch]):
    """The endless training batches of one process; `get_state` and `set_state` make them resumable.

    Close it when it is no longer needed, or use it in a `with` statement: it may have worker processes.
    """

    def __init__(self, source: "_BatchSource", identity: dict[str, object], *, num_workers: int, prefetch: int):
        self._source, self._identity = source, identity
        self._num_workers, self._prefetch = num_workers, prefetch
        self._next_batch = 0
        self._running: list = []  # grain's iterator, once it is started
        # At the end of the program, too: before the modules that grain needs for closing are gone.
        weakref.finalize(self, _close, self._running)

    def __next__(self) -> Batch:
        if not self._running:
            self._running.append(_start(self._source, self._next_batch, self._num_workers, self._prefetch))
        batch = next(self._running[0])
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, object]:
        """Returns what `set_state` needs, as JSON: the next batch, and what decides which batch that is."""
        return {"next_batch": self._next_batch, **self._identity}

    def set_state(self, state: dict[str, object]) -> None:
        """Goes on at the batch of `state`, with any number of workers and processes.

        Raises DataError that names what differs if `state` belongs to other batches.
        """
        if not isinstance(state, dict) or type(state.get("next_batch")) is not int or state["next_batch"] < 0:
            raise DataError(f"this is not the state of a data iterator: {state!r}")
        differing = [
            f"{name} (saved {state.get(name)!r}, now {value!r})"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differing:
            raise DataError("the data are not those of the saved state; different: " + ", ".join(differing))
        self.close()
        self._next_batch = state["next_batch"]

    def close(self) -> None:
        """Ends threads and worker processes. The next batch, if asked for, starts them again."""
        _close(self._running)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def train_batches(
    cache: TokenCache,
    *,
    tokenizer: Tokenizer,
    length: int,
    batch_size: int,
    seed: int,
    attend_across_documents: bool,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    prefetch: int = 4,
) -> Batches:
    """Returns this process's part of the training batches: see `packing.windows` for what is in one.

    Args:
      batch_size: rows of the global batch; process p has rows p·B/n … (p+1)·B/n of it.
      num_workers: processes that assemble batches; 0 uses threads of this one.
      prefetch: about how many batches are prepared ahead.
    """
    if batch_size % process_count:
        raise DataError(f"batch_size {batch_size} is not divisible by the number of processes, {process_count}")
    rows = batch_size // process_count
    source = _BatchSource(
        TrainWindows(cache, length=length, seed=seed),
        batch_size=batch_size,
        first_row=rows * process_index,
        rows=rows,
        options=_options(tokenizer, attend_across_documents),
    )
    identity = {
        "cache": cache.key,
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "seed": seed,
        "batch_size": batch_size,
        "length": length,
        "attend_across_documents": attend_across_documents,
    }
    return Batches(source, identity, num_workers=num_workers, prefetch=prefetch)


def _options(tokenizer: Tokenizer, attend_across_documents: bool) -> dict[str, object]:
    return {
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "attend_across_documents": attend_across_documents,
    }


@dataclass(frozen=True)
class _BatchSource:
    """One process's part of each global batch, by the batch's number: what grain reads, in any order."""

    windows: TrainWindows
    batch_size: int
    first_row: int
    rows: int
    options: dict[str, object]
    start: int = 0

    def __len__(self) -> int:
        return _NUM_BATCHES - self.start

    def __getitem__(self, index: int) -> Batch:
        first = (self.start + int(index)) * self.batch_size + self.first_row
        return self.windows.rows(first, self.rows, **self.options)


def _start(source: _BatchSource, start: int, num_workers: int, prefetch: int):
    """Returns grain's iterator over the batches from number `start`."""
    import grain
    from absl import flags

    from_start = grain.MapDataset.source(_BatchSource(**{**vars(source), "start": start}))
    threads = 0 if num_workers else min(2, prefetch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=0 if num_workers else prefetch)
    dataset = from_start.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which only absl's own main function parses
        ahead = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=max(1, prefetch // num_workers)
        )
        dataset = dataset.mp_prefetch(ahead, worker_init_fn=_start_worker)
        # Pipes, not shared memory: quick enough for batches, and nothing is left behind by a killed process.
        dataset = grain.experimental.WithOptionsIterDataset(
            dataset, grain.experimental.DatasetOptions(min_shm_size=2**62)
        )
    return iter(dataset)


def _close(running: list) -> None:
    while running:
        running.pop().close()


def _start_worker(index: int, count: int) -> None:
    exit_with_parent()


class EvalBatches:
    """The batches that predict each token of a cache once; can be iterated again and again."""

    def __init__(self, windows: EvalWindows, batch_size: int, options: dict[str, object]):
        self._windows, self._batch_size, self._options = windows, batch_size, options

    def __len__(self) -> int:
        return (self._windows.num_windows + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield self._windows.rows(index * self._batch_size, self._batch_size, **self._options)


def eval_batches(
    cache: TokenCache,
    *,
    tokenizer: Tokenizer,
    length: int,
    batch_size: int,
    attend_across_documents: bool,
    stride: int | None = None,
) -> EvalBatches:
    """Returns batches in the order of the documents, each token predicted exactly once; see `EvalWindows`.

    The last batch is filled up with rows of weight 0.
    """
    windows = EvalWindows(cache, length=length, stride=stride)
    return EvalBatches(windows, batch_size, _options(tokenizer, attend_across_documents))
