"""From a DataConfig to batches: tokenizer, token caches, and iterators that resume exactly.

The global batch `step` is a pure function of the cache, the objective, the seed, the length and the batch size. Each
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

from data import config as configs
from data import sources as reading
from data import tokenizer as tokenizers
from data.batches import Batch, BatchMaker
from data.cache import Split, build, content_key, why_empty
from data.cleaning import clean
from data.config import CausalLM, DataConfig, Objective
from data.document import DataError, Skipped
from data.objectives import Stack, num_static_masks, objective_tokenizer
from data.packing import EvalWindows, TrainWindows
from data.token_cache import TokenCache
from data.tokenizer import Tokenizer
from data.workers import exit_with_parent

_NUM_BATCHES = 2**40  # of an endless iterator; grain wants a number
_CAUSAL_LM = CausalLM()


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
    objective: Objective = _CAUSAL_LM,
    report: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Returns the tokenizer and the caches of `config`, making what is not yet in `config.cache_dir`.

    Args:
      tokenizer: is used as it is, so that a run that goes on never trains another; None trains or loads one.
      objective: gets the special tokens that it needs, if the tokenizer lacks them.
      report: is called with lines that tell what is going on.

    Raises DataError for bad input.
    """
    hold_out = not config.validation and config.held_out_fraction > 0
    train_split = Split(config.held_out_fraction, "train") if hold_out else None
    if tokenizer is None:
        tokenizer = _tokenizer(config, train_split, report)
    tokenizer = objective_tokenizer(tokenizer, objective, config.length)

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
    if isinstance(config.tokenizer, configs.Bytes) or getattr(config.tokenizer, "path", None) is not None:
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
    objective: Objective = _CAUSAL_LM,
    stack: Stack = "decoder",
    target_length: int | None = None,
    decoder_start_id: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    prefetch: int = 4,
) -> Batches:
    """Returns this process's part of the training batches: see `data.batches` for what is in one.

    Args:
      tokenizer: has the special tokens that the objective needs, see `objective_tokenizer`.
      objective, stack, target_length, decoder_start_id: see `BatchMaker`.
      batch_size: rows of the global batch; process p has rows p·B/n … (p+1)·B/n of it.
      num_workers: processes that assemble batches; 0 uses threads of this one.
      prefetch: about how many batches are prepared ahead.
    """
    if batch_size % process_count:
        raise DataError(f"batch_size {batch_size} is not divisible by the number of processes, {process_count}")
    rows = batch_size // process_count
    maker = BatchMaker(
        objective, tokenizer, length, attend_across_documents, seed, stack, target_length, decoder_start_id
    )
    source = _BatchSource(
        TrainWindows(cache, length=maker.text_length, seed=seed, duplicates=num_static_masks(objective)),
        maker,
        batch_size=batch_size,
        first_row=rows * process_index,
        rows=rows,
    )
    identity = {
        "cache": cache.key,
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "seed": seed,
        "batch_size": batch_size,
        "length": length,
        "attend_across_documents": attend_across_documents,
        "objective": _identity(maker),
    }
    return Batches(source, identity, num_workers=num_workers, prefetch=prefetch)


def _identity(maker: BatchMaker) -> dict[str, object] | None:
    """Returns what decides the examples of a window; None, as in states from before there was a choice: causal_lm."""
    if maker.objective == _CAUSAL_LM:
        return None
    more = {"stack": maker.stack, "target_length": maker.target_length, "decoder_start_id": maker.decoder_start_id}
    return {**maker.objective.model_dump(mode="json"), **more}


@dataclass(frozen=True)
class _BatchSource:
    """One process's part of each global batch, by the batch's number: what grain reads, in any order."""

    windows: TrainWindows
    maker: BatchMaker
    batch_size: int
    first_row: int
    rows: int
    start: int = 0

    def __len__(self) -> int:
        return _NUM_BATCHES - self.start

    def __getitem__(self, index: int) -> Batch:
        first = (self.start + int(index)) * self.batch_size + self.first_row
        return self.maker.batch(self.windows, first, self.rows)


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
    """The batches that show each token of a cache once; can be iterated again and again."""

    def __init__(self, windows: EvalWindows, batch_size: int, maker: BatchMaker):
        self._windows, self._batch_size, self._maker = windows, batch_size, maker

    def __len__(self) -> int:
        return (self._windows.num_windows + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            yield self._maker.batch(self._windows, index * self._batch_size, self._batch_size)


def eval_batches(
    cache: TokenCache,
    *,
    tokenizer: Tokenizer,
    length: int,
    batch_size: int,
    attend_across_documents: bool,
    stride: int | None = None,
    objective: Objective = _CAUSAL_LM,
    stack: Stack = "decoder",
    target_length: int | None = None,
    decoder_start_id: int | None = None,
) -> EvalBatches:
    """Returns batches in the order of the documents, each token shown exactly once; see `EvalWindows`.

    What is random in an example depends on the number of its window alone, so that every evaluation of a text is
    the same. The last batch is filled up with rows of weight 0. Raises DataError for a stride with an objective
    other than causal_lm.
    """
    if stride is not None and objective != _CAUSAL_LM:
        raise DataError(f"stride is for the objective causal_lm alone, not for {objective.kind}")
    maker = BatchMaker(objective, tokenizer, length, attend_across_documents, 0, stack, target_length, decoder_start_id)
    windows = EvalWindows(cache, length=maker.text_length, stride=stride)
    return EvalBatches(windows, batch_size, maker)
