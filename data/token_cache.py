"""Reads a finished token cache: memory-mapped shards that act as one long array of tokens."""

import json
from pathlib import Path

import numpy as np

from data.document import DataError


def dtype_of(vocab_size: int) -> type[np.unsignedinteger]:
    """Returns the smallest type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def shard_paths(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Returns the paths of a shard's tokens, lengths and description."""
    stem = f"shard-{number:05d}"
    return folder / f"{stem}.bin", folder / f"{stem}.lengths.npy", folder / f"{stem}.json"


class TokenCache:
    """A complete cache, read-only. Pickles as its path, so that worker processes map the same pages.

    Attributes:
      folder, key: where it is, and the hash of what decides its content.
      lengths: int64 [num_documents], the tokens of each document (no document is empty of text).
      starts: int64 [num_documents + 1], where each document starts in the concatenation of all tokens.
      num_documents, num_tokens, num_characters, num_bytes (of UTF-8), num_words: totals of the cleaned text,
        before it is detokenized; a newline counts as a word, as in WikiText.
      num_empty, num_of_other_split, skipped: documents without text, documents of the split's other part and
        bad records, none of which are in the cache; skipped_messages: the reasons for the first of these.
    """

    def __init__(self, folder: str | Path):
        """Opens the cache; raises DataError if a file is missing or has another size than it should."""
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / "manifest.json").read_bytes())
            self.key: str = manifest["key"]
            self.num_documents: int = manifest["num_documents"]
            self.num_tokens: int = manifest["num_tokens"]
            self.num_characters: int = manifest["num_characters"]
            self.num_bytes: int = manifest["num_bytes"]
            self.num_words: int = manifest["num_words"]
            self.num_empty: int = manifest["num_empty"]
            self.num_of_other_split: int = manifest["num_of_other_split"]
            self.skipped: int = manifest["skipped"]
            self.skipped_messages: tuple[str, ...] = tuple(manifest["skipped_messages"])
            dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
            lengths = [np.empty(0, np.int64)]
            self._shards: list[np.ndarray] = []
            for number, shard in enumerate(manifest["shards"]):
                tokens, document_lengths = _open_shard(self.folder, number, dtype)
                if (len(tokens), len(document_lengths)) != (shard["num_tokens"], shard["num_documents"]):
                    raise ValueError(f"shard {number} does not have the size that the manifest says")
                lengths.append(document_lengths)
                if len(tokens):
                    self._shards.append(tokens)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.folder}: the token cache is damaged; delete the folder: {error!r}") from error
        self.lengths = np.concatenate(lengths)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._shard_starts = np.cumsum([0] + [len(shard) for shard in self._shards])

    def __reduce__(self):
        return TokenCache, (self.folder,)

    def __repr__(self) -> str:
        return f"TokenCache({self.folder}, {self.num_documents:,} documents, {self.num_tokens:,} tokens)"

    def document(self, index: int) -> np.ndarray:
        """Returns the tokens of one document: int32 [length]."""
        return self.take_ranges(self.starts[index : index + 1], self.lengths[index : index + 1])

    def take_ranges(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns ranges of the concatenation of all tokens, one after the other: int32 [sum of lengths].

        Args:
          starts, lengths: int64 [number of ranges]; each range lies within one document.
        """
        if len(self._shards) == 1:
            return self._shards[0].take(_places(starts, lengths)).astype(np.int32)
        shards = np.searchsorted(self._shard_starts, starts, side="right") - 1
        order = np.argsort(shards, kind="stable")
        shards, lengths_by_shard = shards[order], lengths[order]
        places = _places((starts[order] - self._shard_starts[shards]), lengths_by_shard)
        tokens = np.empty(len(places), np.int32)
        firsts = np.flatnonzero(np.diff(shards, prepend=-1))  # the first range in each shard
        ends = np.cumsum(lengths_by_shard)
        bounds = np.append(ends[firsts] - lengths_by_shard[firsts], len(places))
        for shard, start, end in zip(shards[firsts], bounds[:-1], bounds[1:], strict=True):
            if start < end:
                tokens[start:end] = self._shards[shard].take(places[start:end])
        offsets = np.cumsum(lengths) - lengths
        result = np.empty_like(tokens)
        result[_places(offsets[order], lengths_by_shard)] = tokens
        return result


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, …, start + length - 1 for each range, one after the other: int64."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def _open_shard(folder: Path, number: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    tokens_path, lengths_path, _ = shard_paths(folder, number)
    lengths = np.load(lengths_path, allow_pickle=False)
    if tokens_path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype), lengths
    # A plain array over the map: np.memmap does work in Python at every slice.
    return np.asarray(np.memmap(tokens_path, dtype, mode="r")), lengths
