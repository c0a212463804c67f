"""Text ↔ integers, behind one small protocol, with three tokenizers: subwords, characters and bytes.

Ids 0 to 3 are padding, unknown, begin of document and end of document in all that are trained here. No text
can spell one of them: `encode("</s>")` is ordinary pieces. What is encoded is decoded to the very same text,
except that a character tokenizer knows only its alphabet.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import sentencepiece

from data import config as configs
from data.document import DataError
from data.storage import write_atomically

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
_FIRST = len(SPECIALS)
_META_SPACE = "\u2581"  # SentencePiece writes a space as this character and reads both as a space
_FORMAT_VERSION = 1
# A Python list of ids takes ten times the memory of an array, so a long document goes through in parts.
_LINES_AT_ONCE = 10_000


class Tokenizer(Protocol):
    """What the rest of the code knows of a tokenizer. Instances are immutable and can be pickled.

    `vocab_size` counts all ids; `encode` adds no special ids; `decode` drops them. `encode` raises
    UnicodeEncodeError for a text with lone surrogates, which is not Unicode.
    """

    vocab_size: int
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`: int32 [number of tokens]."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns `encode` of each text, quicker."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns each id's name, for display only."""

    def save(self, folder: str | Path) -> None:
        """Writes what `load` needs to `folder`."""


@dataclass(frozen=True)
class ByteTokenizer:
    """One token per UTF-8 byte: id = byte + 4."""

    kind: ClassVar[str] = "bytes"
    pad_id: ClassVar[int] = 0
    unk_id: ClassVar[int] = 1
    bos_id: ClassVar[int] = 2
    eos_id: ClassVar[int] = 3
    vocab_size: ClassVar[int] = _FIRST + 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + _FIRST

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - _FIRST for i in _known(ids, self.vocab_size) if i >= _FIRST).decode("utf-8", "replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        known = _known(ids, self.vocab_size)
        return [SPECIALS[i] if i < _FIRST else ascii(chr(i - _FIRST))[1:-1] for i in known]

    def save(self, folder: str | Path) -> None:
        _save_description(folder, {"kind": self.kind})


@dataclass(frozen=True)
class CharacterTokenizer:
    """One token per character: id = place in the sorted `alphabet` + 4; all others are unknown."""

    kind: ClassVar[str] = "characters"
    pad_id: ClassVar[int] = 0
    unk_id: ClassVar[int] = 1
    bos_id: ClassVar[int] = 2
    eos_id: ClassVar[int] = 3
    alphabet: str

    @property
    def vocab_size(self) -> int:
        return _FIRST + len(self.alphabet)

    @cached_property
    def _codes(self) -> np.ndarray:
        return _code_points(self.alphabet)

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        place = np.searchsorted(self._codes, codes).clip(max=len(self.alphabet) - 1)
        return np.where(self._codes[place] == codes, place + _FIRST, self.unk_id).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        shown = (i for i in _known(ids, self.vocab_size) if i >= _FIRST or i == self.unk_id)
        return "".join("\ufffd" if i == self.unk_id else self.alphabet[i - _FIRST] for i in shown)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        known = _known(ids, self.vocab_size)
        return [SPECIALS[i] if i < _FIRST else self.alphabet[i - _FIRST] for i in known]

    def save(self, folder: str | Path) -> None:
        _save_description(folder, {"kind": self.kind, "alphabet": self.alphabet})


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """Subwords of a SentencePiece model.

    A model trained here has "\\n" as a piece of its own, so each line is encoded by itself: as quick, and
    exact where one search through a long document would add up millions of float32 scores. U+2581, which
    SentencePiece would turn into a space, is encoded as its three bytes. Another model (T5's, say) is used
    as it is, with its own normalization; special ids that it lacks are added after its pieces.
    """

    kind: ClassVar[str] = "sentencepiece"
    model: bytes = field(repr=False)
    _processor: sentencepiece.SentencePieceProcessor = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DataError("not a SentencePiece model") from error
        if processor.unk_id() < 0 or processor.vocab_size() <= 0:
            raise DataError("not a SentencePiece model")
        object.__setattr__(self, "_processor", processor)

    def __reduce__(self):
        return SentencePieceTokenizer, (self.model,)

    @cached_property
    def _special_ids(self) -> tuple[int, int, int, int]:
        processor, added = self._processor, 0
        ids = []
        for i in (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()):
            ids.append(i if i >= 0 else processor.vocab_size() + added)
            added += i < 0
        return tuple(ids)

    @cached_property
    def vocab_size(self) -> int:
        return max(self._processor.vocab_size(), max(self._special_ids) + 1)

    @property
    def pad_id(self) -> int:
        return self._special_ids[0]

    @property
    def unk_id(self) -> int:
        return self._special_ids[1]

    @property
    def bos_id(self) -> int:
        return self._special_ids[2]

    @property
    def eos_id(self) -> int:
        return self._special_ids[3]

    @cached_property
    def _newline(self) -> int | None:
        """The id of "\\n" if this model was trained here, else None."""
        i = self._processor.piece_to_id("\n")
        return i if i != self._processor.unk_id() and self._processor.is_byte(i + 1) else None

    @cached_property
    def _meta_space_bytes(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _META_SPACE.encode()]

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._newline is None:
            return [np.array(ids, np.int32) for ids in self._encode(list(texts))]
        lines = list(chain.from_iterable(text.split("\n") for text in texts))
        blocks, sizes = [np.empty(0, np.int32)], []
        for start in range(0, len(lines), _LINES_AT_ONCE):
            block = self._encode_lines(lines[start : start + _LINES_AT_ONCE])
            blocks.append(np.fromiter(chain.from_iterable(block), np.int32))
            sizes += map(len, block)
        ids = np.concatenate(blocks)
        line_ends = np.cumsum([0, *sizes])
        text_ends = np.cumsum([0, *(text.count("\n") + 1 for text in texts)])
        bounds = line_ends[text_ends]
        return [ids[start : end - 1] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]

    def _encode_lines(self, lines: list[str]) -> list[list[int]]:
        """Returns the ids of each line and, at its end, of a newline."""
        encoded = self._encode(lines)
        for i, line in enumerate(lines):
            if _META_SPACE in line:
                encoded[i] = _join(self._encode(line.split(_META_SPACE)), self._meta_space_bytes)
            encoded[i].append(self._newline)
        return encoded

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            return self._processor.encode(texts, num_threads=1)
        except TypeError:  # what SentencePiece says of a lone surrogate
            for text in texts:
                text.encode("utf-8")
            raise

    def decode(self, ids: Iterable[int]) -> str:
        dropped = {self.pad_id, self.bos_id, self.eos_id}
        return self._processor.decode([i for i in _known(ids, self.vocab_size) if i not in dropped])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        names = dict(zip(self._special_ids, SPECIALS, strict=True))
        known = _known(ids, self.vocab_size)
        return [names[i] if i in names else self._processor.id_to_piece(i) for i in known]

    def save(self, folder: str | Path) -> None:
        write_atomically(Path(folder) / "tokenizer.model", self.model)
        _save_description(folder, {"kind": self.kind, "sha256": hashlib.sha256(self.model).hexdigest()})


def _known(ids: Iterable[int], vocab_size: int) -> list[int]:
    known = [int(i) for i in ids]
    for i in known:
        if not 0 <= i < vocab_size:
            raise DataError(f"token id {i} is outside the vocabulary of {vocab_size}")
    return known


def _join(parts: Sequence[list[int]], separator: list[int]) -> list[int]:
    joined = list(parts[0])
    for part in parts[1:]:
        joined += separator
        joined += part
    return joined


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _save_description(folder: str | Path, description: dict) -> None:
    text = json.dumps({"version": _FORMAT_VERSION, **description}, indent=1, sort_keys=True, ensure_ascii=True)
    write_atomically(Path(folder) / "tokenizer.json", text.encode())


def load(path: str | Path) -> Tokenizer:
    """Returns the tokenizer that `save` wrote to the folder `path`, or that of a SentencePiece `.model` file.

    Raises DataError if it is missing, damaged or of another version.
    """
    path = Path(path)
    try:
        if path.is_file():
            return SentencePieceTokenizer(path.read_bytes())
        description = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        if not isinstance(description, dict) or description.get("version") != _FORMAT_VERSION:
            raise DataError(f"{path}: tokenizer.json is not of version {_FORMAT_VERSION}")
        return _from_description(description, path)
    except DataError as error:
        raise error if str(error).startswith(str(path)) else DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: no tokenizer can be read here: {error.strerror}: {error.filename}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: tokenizer.json is damaged: {error!r}") from error


def _from_description(description: dict, path: Path) -> Tokenizer:
    kind = description["kind"]
    if kind == ByteTokenizer.kind:
        return ByteTokenizer()
    if kind == CharacterTokenizer.kind:
        alphabet = description["alphabet"]
        if not alphabet or sorted(set(alphabet)) != list(alphabet):
            raise ValueError("the alphabet is not sorted")
        return CharacterTokenizer(alphabet)
    if kind == SentencePieceTokenizer.kind:
        model = (path / "tokenizer.model").read_bytes()
        if hashlib.sha256(model).hexdigest() != description["sha256"]:
            raise DataError(f"{path}: tokenizer.model is damaged: its checksum is not the one in tokenizer.json")
        return SentencePieceTokenizer(model)
    raise ValueError(f"unknown kind {kind!r}")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a hash (hexadecimal) that is equal exactly for tokenizers that encode all texts alike."""
    content = {
        ByteTokenizer.kind: lambda: b"",
        CharacterTokenizer.kind: lambda: tokenizer.alphabet.encode(),
        SentencePieceTokenizer.kind: lambda: tokenizer.model,
    }[tokenizer.kind]()
    return hashlib.sha256(tokenizer.kind.encode() + b"\0" + content).hexdigest()


def train(config: configs.Tokenizer, texts: Iterator[str]) -> Tokenizer:
    """Returns the tokenizer that `config` asks for, trained on `texts` if it needs training.

    The same config and texts give the same tokenizer. Raises DataError if the texts do not allow it.
    """
    if isinstance(config, configs.Bytes):
        return ByteTokenizer()
    if isinstance(config, configs.Characters):
        alphabet: set[str] = set()
        for text in texts:
            alphabet.update(text)
        if not alphabet:
            raise DataError("the tokenizer cannot be trained: there is no text")
        return CharacterTokenizer("".join(sorted(alphabet)))
    if config.path is not None:
        return load(config.path)
    from data.subwords import train_subwords

    return SentencePieceTokenizer(train_subwords(config, texts))
