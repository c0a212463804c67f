"""The token cache: every document's tokens as flat integers on disk, made once and then memory-mapped.

    CACHE_DIR/KEY/manifest.json             written last: the cache is complete
                  shard-00000.bin           the documents' tokens, one after the other, without special ids
                  shard-00000.lengths.npy   int64: the number of tokens of each document
                  shard-00000.json          written after the two above: counts and their checksums

KEY is a hash of everything that decides the content, so another setting makes another cache and none is
ever stale. A shard holds the documents of one chunk of raw text. Shards are made in any order, by several
processes, each written under a temporary name and renamed: a build that was killed goes on where it was and
ends with the very same bytes, and two builds of the same cache do no harm.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from data import sources as reading
from data import tokenizer as tokenizers
from data.cleaning import clean
from data.config import Cleaning, Source
from data.document import DataError, Skipped
from data.storage import remove_abandoned, sha256_of_file, write_atomically
from data.token_cache import TokenCache, dtype_of, shard_paths
from data.workers import exit_with_parent

FORMAT_VERSION = 2
CHUNK_CHARACTERS = 4_000_000
LONG_DOCUMENT = 10_000

Report = Callable[[str], None]


@dataclass(frozen=True)
class Split:
    """Which text belongs to a cache: what is held out of the (cleaned) documents, or the rest.

    Short documents are held out whole, chosen by a hash of their text. Of a document of `LONG_DOCUMENT`
    characters or more, the end is held out: so a corpus of one long file has both parts. Equal texts are
    always split alike, and adding documents moves none.
    """

    fraction: float
    part: Literal["train", "validation"]

    def select(self, text: str) -> str:
        """The part of `text` that belongs here, perhaps nothing."""
        if len(text) >= LONG_DOCUMENT:
            cut = len(text) - int(len(text) * self.fraction)
            return text[:cut] if self.part == "train" else text[cut:]
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        held_out = int.from_bytes(digest, "big") < self.fraction * 2**64
        return text if held_out == (self.part == "validation") else ""


@dataclass(frozen=True)
class _Job:
    """What a process needs to turn chunks of raw text into shards."""

    folder: Path
    cleaning: Cleaning
    tokenizer: tokenizers.Tokenizer
    split: Split | None


def build(
    sources: Sequence[Source],
    cleaning: Cleaning,
    tokenizer: tokenizers.Tokenizer,
    cache_dir: str | Path,
    *,
    split: Split | None = None,
    processes: int | None = None,
    report: Report = lambda line: None,
) -> TokenCache:
    """Returns the cache of the sources' documents, making first what of it is missing.

    Args:
      split: keep one side of a held-out split; None keeps every document.
      processes: how many processes tokenize; None is one per processor core. Not used for a single chunk.
      report: is called with lines that tell what is going on.

    Raises:
      DataError: for bad input, a source that changed meanwhile, or no tokens at all.
    """
    # Added special ids stand in no text, so with and without them it is one cache, of one type of integers.
    tokenizer = tokenizers.without_added(tokenizer)
    key = cache_key(sources, cleaning, tokenizer, cache_dir, split)
    folder = Path(cache_dir) / key[:16]
    if not (folder / "manifest.json").exists():
        report(f"tokenizing into {folder}")
        skipped = Skipped()
        job = _Job(folder, cleaning, tokenizer, split)
        shards = _make_shards(job, _chunks(sources, skipped), processes, report)
        if cache_key(sources, cleaning, tokenizer, cache_dir, split) != key:
            raise DataError("a source changed while it was being read; start again")
        total = {name: sum(shard[name] for shard in shards) for name in _COUNTS}
        manifest = {
            "key": key,
            "format_version": FORMAT_VERSION,
            "dtype": np.dtype(dtype_of(tokenizer.vocab_size)).name,
            "skipped": skipped.count,
            "skipped_messages": skipped.messages,
            **total,
            "shards": shards,
        }
        remove_abandoned(folder)
        write_atomically(folder / "manifest.json", _json(manifest))
        report(_summary(manifest))
    cache = TokenCache(folder)
    if cache.num_tokens == 0:
        num_documents = cache.num_empty + cache.num_of_other_split
        raise DataError(why_empty(sources, split, num_documents=num_documents, num_skipped=cache.skipped))
    return cache


def cache_key(
    sources: Sequence[Source],
    cleaning: Cleaning,
    tokenizer: tokenizers.Tokenizer,
    cache_dir: str | Path,
    split: Split | None,
) -> str:
    """Returns the hash (hexadecimal) of everything that decides what is in a cache."""
    more = {"tokenizer": tokenizers.fingerprint(tokenizer), "format_version": FORMAT_VERSION}
    return content_key(sources, cleaning, cache_dir, split, **more)


def content_key(
    sources: Sequence[Source], cleaning: Cleaning, cache_dir: str | Path, split: Split | None, **more: object
) -> str:
    """Returns a hash (hexadecimal) of the documents that the arguments select, and of `more`.

    Not of paths: a run can go on where its data lie in another folder.
    """
    content = {
        "sources": [
            [source.model_dump(exclude={"path"}), reading.fingerprint(source, cache_dir)] for source in sources
        ],
        "cleaning": cleaning.model_dump(),
        "split": asdict(split) if split else None,
        **more,
    }
    return hashlib.sha256(_json(content)).hexdigest()


# Reading and scheduling


def _chunks(sources: Sequence[Source], skipped: Skipped) -> Iterator[list[str]]:
    """Yields the raw texts in lists of about `CHUNK_CHARACTERS`; a longer document is a list of its own."""
    chunk, size = [], 0
    for source in sources:
        for document in reading.read(source, skipped):
            if chunk and size + len(document.text) > CHUNK_CHARACTERS:
                yield chunk
                chunk, size = [], 0
            chunk.append(document.text)
            size += len(document.text)
    if chunk:
        yield chunk


def _make_shards(job: _Job, chunks: Iterator[list[str]], processes: int | None, report: Report) -> list[dict]:
    """Returns the description of each chunk's shard, making those that are missing or damaged."""
    done: dict[int, dict] = {}
    waiting = _missing(job.folder, chunks, done)
    first = [chunk for _, chunk in zip(range(2), waiting, strict=False)]
    processes = processes or _processor_cores()
    if len(first) == 2 and processes > 1:
        _make_in_processes(job, first, waiting, processes, done, report)
    else:
        for numbered in (*first, *waiting):
            done[numbered[0]] = _make_shard(job, *numbered)
            report(f"shard {numbered[0] + 1} is ready")
    return [done[number] for number in range(len(done))]


def _processor_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _missing(folder: Path, chunks: Iterator[list[str]], done: dict[int, dict]) -> Iterator[tuple[int, list[str]]]:
    """Yields (number, chunk) of the shards that are not ready and puts those that are into `done`."""
    for number, chunk in enumerate(chunks):
        if (shard := _finished_shard(folder, number)) is not None:
            done[number] = shard
        else:
            yield number, chunk


def _make_in_processes(
    job: _Job,
    first: list[tuple[int, list[str]]],
    waiting: Iterator[tuple[int, list[str]]],
    processes: int,
    done: dict[int, dict],
    report: Report,
) -> None:
    """Makes shards in a pool. At most one chunk per process waits for its turn, which bounds the memory."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start_worker, initargs=(job,))
    numbers = {}

    def collect(return_when: str | None) -> None:
        finished = wait(numbers, return_when=return_when).done if return_when else wait(numbers).done
        for future in finished:
            number = numbers.pop(future)
            done[number] = future.result()
            report(f"shard {number + 1} is ready")

    try:
        for number, chunk in _concatenate(first, waiting):
            numbers[pool.submit(_make_shard_in_worker, number, chunk)] = number
            if len(numbers) >= 2 * processes:
                collect(FIRST_COMPLETED)
        collect(None)
    except BrokenProcessPool as error:
        raise DataError(
            "a tokenizing process died; if it left no message above, then probably for lack of memory: "
            "lower tokenizer_processes and start again, what is finished is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _concatenate(first: list, rest: Iterator) -> Iterator:
    yield from first
    yield from rest


_worker_job: _Job | None = None  # the job of this worker process


def _start_worker(job: _Job) -> None:
    global _worker_job
    exit_with_parent()
    _worker_job = job


def _make_shard_in_worker(number: int, chunk: list[str]) -> dict:
    return _make_shard(_worker_job, number, chunk)


# Shards


def cleaned_part(raw: str, cleaning: Cleaning, split: Split | None) -> tuple[str, str]:
    """Returns the text of a document and the part of it that belongs to `split`: words are counted in these."""
    text = clean(raw, cleaning.model_copy(update={"detokenize": "none"}))
    return text, split.select(text) if split else text


def detokenized(part: str, cleaning: Cleaning) -> str:
    """Returns what of a `cleaned_part` is tokenized."""
    return clean(part, Cleaning(detokenize=cleaning.detokenize))


_COUNTS = (
    "num_documents",
    "num_tokens",
    "num_characters",
    "num_bytes",
    "num_words",
    "num_empty",
    "num_of_other_split",
)


def _make_shard(job: _Job, number: int, chunk: list[str]) -> dict:
    """Cleans, selects and tokenizes the texts of `chunk`, writes the shard and returns its description."""
    texts, empty, other = [], 0, 0
    for raw in chunk:
        text, selected = cleaned_part(raw, job.cleaning, job.split)
        if not text.strip():
            empty += 1
        elif not selected.strip():
            other += 1
        else:
            texts.append(selected)
    documents = job.tokenizer.encode_batch([detokenized(text, job.cleaning) for text in texts])
    lengths = np.array([len(document) for document in documents], np.int64)
    tokens = np.concatenate([np.empty(0, np.int32), *documents]).astype(dtype_of(job.tokenizer.vocab_size))
    lengths_file = io.BytesIO()
    np.save(lengths_file, lengths)
    contents = (tokens.astype(tokens.dtype.newbyteorder("<")).tobytes(), lengths_file.getvalue())
    counts = {
        "num_documents": len(texts),
        "num_tokens": len(tokens),
        "num_characters": sum(map(len, texts)),
        "num_bytes": sum(len(text.encode()) for text in texts),
        "num_words": sum(map(count_words, texts)),
        "num_empty": empty,
        "num_of_other_split": other,
    }
    tokens_path, lengths_path, description_path = shard_paths(job.folder, number)
    for path, content in zip((tokens_path, lengths_path), contents, strict=True):
        write_atomically(path, content)
    checksums = {
        "tokens_sha256": hashlib.sha256(contents[0]).hexdigest(),
        "lengths_sha256": hashlib.sha256(contents[1]).hexdigest(),
    }
    write_atomically(description_path, _json({**counts, **checksums}))
    return {**counts, **checksums}


def count_words(text: str) -> int:
    """Returns the number of words between white space, plus one for each newline.

    This is how WikiText counts, where every line end is a token: its test set has 245,569 "words".
    """
    return len(text.split()) + text.count("\n")


def _finished_shard(folder: Path, number: int) -> dict | None:
    """Returns the description of a shard whose files are there and whole, else None."""
    tokens_path, lengths_path, description_path = shard_paths(folder, number)
    try:
        shard = json.loads(description_path.read_bytes())
        whole = (
            sha256_of_file(tokens_path) == shard["tokens_sha256"]
            and sha256_of_file(lengths_path) == shard["lengths_sha256"]
        )
        return {name: shard[name] for name in (*_COUNTS, "tokens_sha256", "lengths_sha256")} if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()


def _summary(manifest: dict) -> str:
    line = f"{manifest['num_documents']:,} documents, {manifest['num_tokens']:,} tokens"
    if manifest["skipped"]:
        line += f"; {manifest['skipped']:,} bad records skipped, the first: {manifest['skipped_messages'][0]}"
    return line


def why_empty(sources: Sequence[Source], split: Split | None, *, num_documents: int, num_skipped: int) -> str:
    """Returns a sentence that says why none of `num_documents` documents was kept, and what helps."""
    names = ", ".join(getattr(source, "path", source.kind) for source in sources)
    if split and num_documents:
        return (
            f"{names}: the {split.part} part is empty: of {num_documents} documents none with text fell to "
            f"it at held_out_fraction {split.fraction}; cut the text into more documents (document=paragraph "
            "or line), give validation sources, or set held_out_fraction to 0"
        )
    return f"{names}: there is no text ({num_documents} empty documents, {num_skipped} skipped records)"
