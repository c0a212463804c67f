"""Tokenizers without subwords: one token per byte, one token per character."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from data.vocabulary import SPECIALS, known_ids, save_description, word_starts

_FIRST = len(SPECIALS)


class _FourSpecials:
    """The special ids of both tokenizers."""

    pad_id: ClassVar[int] = 0
    unk_id: ClassVar[int] = 1
    bos_id: ClassVar[int] = 2
    eos_id: ClassVar[int] = 3
    mask_id: ClassVar[None] = None
    sentinel_ids: ClassVar[tuple[int, ...]] = ()
    named: ClassVar[Mapping[str, int]] = MappingProxyType({})
    special_ids: ClassVar[frozenset[int]] = frozenset(range(_FIRST))

    def write_official(self, folder: str | Path) -> None:
        from data.official_export import write_files

        write_files(self, folder)


@dataclass(frozen=True)
class ByteTokenizer(_FourSpecials):
    """One token per UTF-8 byte: id = byte + 4."""

    kind: ClassVar[str] = "bytes"
    vocab_size: ClassVar[int] = _FIRST + 256
    content: ClassVar[bytes] = b""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + _FIRST

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self.encode(text), byte_offsets(text)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - _FIRST for i in known_ids(ids, self.vocab_size) if i >= _FIRST).decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        known = known_ids(ids, self.vocab_size)
        return [SPECIALS[i] if i < _FIRST else ascii(chr(i - _FIRST))[1:-1] for i in known]

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        return _after_white_space(ids, _WHITE_BYTES)

    def save(self, folder: str | Path) -> None:
        save_description(folder, {"kind": self.kind})


@dataclass(frozen=True)
class CharacterTokenizer(_FourSpecials):
    """One token per character: id = place in the sorted `alphabet` + 4; all others are unknown."""

    kind: ClassVar[str] = "characters"
    alphabet: str

    @property
    def vocab_size(self) -> int:
        return _FIRST + len(self.alphabet)

    @property
    def content(self) -> bytes:
        return self.alphabet.encode()

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.alphabet)

    @cached_property
    def _white(self) -> np.ndarray:
        return _white_table(self.alphabet)

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        place = np.searchsorted(self._codes, codes).clip(max=len(self.alphabet) - 1)
        return np.where(self._codes[place] == codes, place + _FIRST, self.unk_id).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(len(text), dtype=np.int32)
        return self.encode(text), np.stack([places, places + 1], axis=1)

    def decode(self, ids: Iterable[int]) -> str:
        shown = (i for i in known_ids(ids, self.vocab_size) if i >= _FIRST or i == self.unk_id)
        return "".join("\ufffd" if i == self.unk_id else self.alphabet[i - _FIRST] for i in shown)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        known = known_ids(ids, self.vocab_size)
        return [SPECIALS[i] if i < _FIRST else self.alphabet[i - _FIRST] for i in known]

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        return _after_white_space(ids, self._white)

    def save(self, folder: str | Path) -> None:
        save_description(folder, {"kind": self.kind, "alphabet": self.alphabet})


def byte_offsets(text: str) -> np.ndarray:
    """Returns the character that each byte of the UTF-8 of `text` belongs to, and the next one: int32 [bytes, 2]."""
    codes = _code_points(text)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    characters = np.repeat(np.arange(len(codes), dtype=np.int32), sizes)
    return np.stack([characters, characters + 1], axis=1)


def _white_table(characters: Iterable[str]) -> np.ndarray:
    return np.array([False] * _FIRST + [character.isspace() for character in characters])


_WHITE_BYTES = _white_table(chr(byte) if byte < 128 else "" for byte in range(256))
# An unknown character belongs to its word; padding and the ends of documents are no part of any.
_BETWEEN_WORDS = (0, 2, 3)


def _after_white_space(ids: np.ndarray, white: np.ndarray) -> np.ndarray:
    """White space belongs to the word before it, so that a run of spaces is not a run of words."""
    begins, ends = np.zeros_like(white), white.copy()
    begins[list(_BETWEEN_WORDS)] = ends[list(_BETWEEN_WORDS)] = True
    starts = word_starts(ids, begins, ends)
    starts[..., 1:] &= ~white[ids[..., 1:]]
    return starts


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
