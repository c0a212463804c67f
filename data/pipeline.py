"""From a DataConfig to batches: tokenizer, token caches or a task's examples, and iterators that resume exactly.

The global batch `step` is a pure function of the cache or examples, the objective, the seed, the length and the batch
size. Each process takes its rows of it, so the global order does not depend on how many processes there are, nor on
how many workers load data, and the whole state of an iterator is the number of the next batch.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data import config as configs
from data import sources as reading
from data import tokenizer as tokenizers
from data.augmentation import check_augmentation, without_records
from data.batch_iterator import Batches
from data.batches import BatchMaker
from data.cache import Split, build, cleaned_part, content_key, detokenized, why_empty
from data.config import CausalLM, DataConfig, Objective
from data.document import DataError, Skipped
from data.examples import Examples, make_examples, overlap, read_splits
from data.objectives import Stack, num_static_masks, objective_tokenizer
from data.packing import EvalWindows, TrainWindows
from data.rows import Batch
from data.task_batches import ExampleOrder, TaskBatchMaker
from data.task_config import TASKS, Task
from data.tasks import texts
from data.token_cache import TokenCache
from data.tokenizer import Tokenizer

Report = Callable[[str], None]

_CAUSAL_LM = CausalLM()


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and what it made, Examples for a task; `validation` is None where nothing is held out."""

    tokenizer: Tokenizer
    train: TokenCache | Examples
    validation: TokenCache | Examples | None


def prepare(
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    objective: Objective = _CAUSAL_LM,
    stack: Stack = "decoder",
    report: Report = lambda line: None,
) -> Corpus:
    """Returns the tokenizer and the caches of `config`, making what is not yet in `config.cache_dir`.

    For a task, its examples are read into memory instead, see `read_examples`.

    Args:
      tokenizer: is used as it is, so that a run that goes on never trains another; None trains or loads one.
      objective: gets the special tokens that it needs, if the tokenizer lacks them.
      stack: of the model; decides how long the texts of text_to_text may be.
      report: is called with lines that tell what is going on.

    Raises DataError for bad input.
    """
    if isinstance(objective, TASKS):
        return _prepare_task(config, tokenizer, objective, stack, report)
    for name in ("augmentation", "test"):
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise DataError(f"data.{name} is for tasks of labelled records, not for {objective.kind}; leave it out")
    hold_out = not config.validation and config.held_out_fraction > 0
    train_split = Split(config.held_out_fraction, "train") if hold_out else None
    if tokenizer is None:
        key = partial(content_key, config.train, config.cleaning, config.cache_dir, train_split)
        tokenizer = _tokenizer(config, key, lambda: _texts(config, train_split), report)
    tokenizer = objective_tokenizer(tokenizer, objective, config.length)

    def cache(sources: tuple[configs.Source, ...], split: Split | None) -> TokenCache:
        how = {"split": split, "processes": config.tokenizer_processes, "report": report}
        return build(sources, config.cleaning, tokenizer, config.cache_dir, **how)

    train = cache(config.train, train_split)
    if config.validation:
        return Corpus(tokenizer, train, cache(config.validation, None))
    validation = cache(config.train, Split(config.held_out_fraction, "validation")) if hold_out else None
    return Corpus(tokenizer, train, validation)


def _prepare_task(
    config: DataConfig, tokenizer: Tokenizer | None, objective: Task, stack: Stack, report: Report
) -> Corpus:
    check_augmentation(config.augmentation, objective)
    splits = ("train", "validation") if config.validation or config.held_out_fraction else ("train",)
    records = read_splits(config, splits, objective, report)
    if tokenizer is None:

        def training_texts() -> Iterator[str]:
            return (text for record in records["train"] for text in texts(record, objective))

        tokenizer = _tokenizer(config, partial(_texts_key, training_texts), training_texts, report)
    tokenizer = objective_tokenizer(tokenizer, objective, config.length)
    made = {
        split: make_examples(config, split, records[split], objective, tokenizer, stack=stack, report=report)
        for split in splits
    }
    if "validation" in made and (shared := overlap(made["train"], made["validation"])):
        report(f"validation: {shared:,} of {len(records['validation']):,} records have inputs that are in train, too")
    return Corpus(tokenizer, made["train"], made.get("validation"))


def _texts_key(training_texts: Callable[[], Iterator[str]], *, tokenizer: dict) -> str:
    digest = hashlib.sha256(json.dumps(tokenizer, sort_keys=True).encode())
    for text in training_texts():
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _tokenizer(
    config: DataConfig, key: Callable[..., str], training_texts: Callable[[], Iterator[str]], report: Report
) -> Tokenizer:
    """Returns the trained tokenizer from the cache folder, or trains it on the training texts.

    `key` makes the hash of these texts and the argument `tokenizer`.
    """
    if isinstance(config.tokenizer, configs.Bytes) or getattr(config.tokenizer, "path", None) is not None:
        return tokenizers.train(config.tokenizer, iter(()))
    folder = Path(config.cache_dir) / f"tokenizer-{key(tokenizer=config.tokenizer.model_dump())[:16]}"
    if not folder.exists():
        report("training the tokenizer")
        trained = tokenizers.train(config.tokenizer, training_texts())
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
            _, text = cleaned_part(document.text, config.cleaning, split)
            read += 1
            if text.strip():
                kept += 1
                yield detokenized(text, config.cleaning)
    if not kept:
        raise DataError(why_empty(config.train, split, num_documents=read, num_skipped=skipped.count))


# Batches


def train_batches(
    corpus: TokenCache | Examples,
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
    """Returns this process's part of the training batches: `batches.py` and `task_batches.py` say what is in one.

    Args:
      corpus: of a task, examples that were made with the same tokenizer, length, objective and stack.
      tokenizer: has the special tokens that the objective needs, see `objective_tokenizer`.
      objective, stack, target_length, decoder_start_id: see `BatchMaker`.
      batch_size: rows of the global batch; process p has rows p·B/n … (p+1)·B/n of it.
      num_workers: processes that assemble batches; 0 uses threads of this one.
      prefetch: about how many batches are prepared ahead.
    """
    if batch_size % process_count:
        raise DataError(f"batch_size {batch_size} is not divisible by the number of processes, {process_count}")
    rows = batch_size // process_count
    part = slice(rows * process_index, rows * (process_index + 1))
    maker: BatchMaker | TaskBatchMaker
    if isinstance(corpus, Examples):
        _check_examples(corpus, tokenizer, length, objective, stack, target_length)
        maker = TaskBatchMaker(without_records(corpus), is_training=True, seed=seed, decoder_start_id=decoder_start_id)
        make = partial(_example_batch, maker, ExampleOrder(corpus.lengths, batch_size, seed), part)
    else:
        maker = BatchMaker(
            objective, tokenizer, length, attend_across_documents, seed, stack, target_length, decoder_start_id
        )
        windows = TrainWindows(corpus, length=maker.text_length, seed=seed, duplicates=num_static_masks(objective))
        make = partial(_window_batch, maker, windows, batch_size, part)
    identity = {
        "cache": corpus.key,
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "seed": seed,
        "batch_size": batch_size,
        "length": length,
        "attend_across_documents": attend_across_documents,
        "objective": _identity(objective, stack, target_length, decoder_start_id),
    }
    return Batches(make, identity, num_workers=num_workers, prefetch=prefetch)


def _window_batch(maker: BatchMaker, windows: TrainWindows, batch_size: int, part: slice, step: int) -> Batch:
    return maker.batch(windows, step * batch_size + part.start, part.stop - part.start)


def _example_batch(maker: TaskBatchMaker, order: ExampleOrder, part: slice, step: int) -> Batch:
    return maker.batch(*order.batch(step), part)


def _check_examples(
    examples: Examples,
    tokenizer: Tokenizer,
    length: int,
    objective: Objective,
    stack: Stack,
    target_length: int | None,
) -> None:
    """Raises DataError unless the examples were made for the same model and task."""
    made = examples.encoder
    given = {"objective": objective, "length": length, "stack": stack, "target_length": target_length}
    differing = [name for name, value in given.items() if getattr(made, name) != value]
    if tokenizers.fingerprint(tokenizer) != tokenizers.fingerprint(made.tokenizer):
        differing.append("tokenizer")
    if differing:
        raise DataError(f"the examples were made with another {' and '.join(differing)} than their batches are to have")


def _identity(
    objective: Objective, stack: Stack, target_length: int | None, decoder_start_id: int | None
) -> dict[str, object] | None:
    """Returns what decides the examples of a window; None, as in states from before there was a choice: causal_lm."""
    if objective == _CAUSAL_LM:
        return None
    more = {"stack": stack, "target_length": target_length, "decoder_start_id": decoder_start_id}
    return {**objective.model_dump(mode="json"), **more}


class EvalBatches:
    """The batches that show each token of a cache, or each example, once; can be iterated again and again."""

    def __init__(self, make: Callable[[int], Batch], count: int):
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return map(self._make, range(self._count))


def eval_batches(
    corpus: TokenCache | Examples,
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

    A task's examples come in a fixed random order, like lengths together, so that a few batches are a sample of all;
    the array `example` has their numbers.
    """
    if stride is not None and objective != _CAUSAL_LM:
        raise DataError(f"stride is for the objective causal_lm alone, not for {objective.kind}")
    if isinstance(corpus, Examples):
        _check_examples(corpus, tokenizer, length, objective, stack, target_length)
        task_maker = TaskBatchMaker(corpus, is_training=False, decoder_start_id=decoder_start_id)
        order = ExampleOrder(corpus.lengths, batch_size, seed=0)
        return EvalBatches(partial(_filled_batch, task_maker, order), -(-len(corpus) // batch_size))
    maker = BatchMaker(objective, tokenizer, length, attend_across_documents, 0, stack, target_length, decoder_start_id)
    windows = EvalWindows(corpus, length=maker.text_length, stride=stride)
    make = partial(_window_batch, maker, windows, batch_size, slice(0, batch_size))
    return EvalBatches(make, -(-windows.num_windows // batch_size))


def _filled_batch(maker: TaskBatchMaker, order: ExampleOrder, step: int) -> Batch:
    """One epoch; what a batch would have of the next is -1."""
    numbers, epochs = order.batch(step)
    return maker.batch(np.where(epochs == 0, numbers, -1), epochs)
