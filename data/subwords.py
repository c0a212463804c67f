"""Subwords of a SentencePiece model, and the training of one whose encoding loses nothing."""

import hashlib
import heapq
import io
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import sentencepiece

from data.characters import byte_offsets
from data.config import SentencePiece
from data.document import DataError
from data.storage import write_atomically
from data.vocabulary import SPECIALS, known_ids, save_description, space_tables, word_starts

# SentencePiece drops longer lines from training without a word, so they are cut here.
_MAX_SENTENCE_BYTES = 16384
_MAX_SENTENCE_CHARACTERS = _MAX_SENTENCE_BYTES // 4
# The result depends on the number of threads, so it is the same on every machine.
_THREADS = 8
_UNTRAINABLE = re.compile("[\u2581\x00]")  # SentencePiece's sign for a space, and the end of a C string
_META_SPACE = "\u2581"  # SentencePiece writes a space as this character and reads both as a space
# A Python list of ids takes ten times the memory of an array, so a long document goes through in parts.
_LINES_AT_ONCE = 10_000


@dataclass(frozen=True)
class SentencePieceTokenizer:
    """Subwords of a SentencePiece model.

    A model trained here has "\\n" as a piece of its own, so each line is encoded by itself: as quick, and
    exact where one search through a long document would add up millions of float32 scores. U+2581, which
    SentencePiece would turn into a space, is encoded as its three bytes. Another model (T5's, say) is used
    as it is, with its own normalization; special ids that it lacks are added after its pieces.
    """

    kind: ClassVar[str] = "sentencepiece"
    mask_id: ClassVar[None] = None
    sentinel_ids: ClassVar[tuple[int, ...]] = ()
    named: ClassVar[Mapping[str, int]] = MappingProxyType({})
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

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._special_ids)

    @property
    def content(self) -> bytes:
        return self.model

    @property
    def trained_here(self) -> bool:
        return self._newline is not None

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

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if self._newline is None:
            return piece_offsets(self._processor, text)
        text.encode()
        ids, offsets, place = [np.empty(0, np.int32)], [np.empty((0, 2), np.int32)], 0
        for part in re.split(f"(\n|{_META_SPACE})", text):
            if part == "\n":
                found = np.array([self._newline]), np.array([[0, 1]])
            elif part == _META_SPACE:
                found = np.array(self._meta_space_bytes), np.array([[0, 1]] * len(self._meta_space_bytes))
            else:
                found = piece_offsets(self._processor, part)
            ids.append(found[0])
            offsets.append(found[1] + place)
            place += len(part)
        return np.concatenate(ids).astype(np.int32), np.concatenate(offsets).astype(np.int32)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        try:
            return self._processor.encode(texts, num_threads=1)
        except TypeError:  # what SentencePiece says of a lone surrogate
            for text in texts:
                text.encode("utf-8")
            raise

    def decode(self, ids: Iterable[int]) -> str:
        dropped = {self.pad_id, self.bos_id, self.eos_id}
        return self._processor.decode([i for i in known_ids(ids, self.vocab_size) if i not in dropped])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        names = dict(zip(self._special_ids, SPECIALS, strict=True))
        known = known_ids(ids, self.vocab_size)
        return [names[i] if i in names else self._processor.id_to_piece(i) for i in known]

    @cached_property
    def _word_tables(self) -> tuple[np.ndarray, np.ndarray]:
        return space_tables(self.pieces(range(self.vocab_size)), self.special_ids - {self.unk_id})

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        return word_starts(ids, *self._word_tables)

    def save(self, folder: str | Path) -> None:
        write_atomically(Path(folder) / "tokenizer.model", self.model)
        save_description(folder, {"kind": self.kind, "sha256": hashlib.sha256(self.model).hexdigest()})

    def write_official(self, folder: str | Path) -> None:
        from data.official_export import write_files

        write_files(self, folder)


def piece_offsets(processor: sentencepiece.SentencePieceProcessor, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and offsets of one text as `Tokenizer.encode_with_offsets` does."""
    pieces = processor.encode(text, return_type="proto").pieces
    ids = np.array([piece.id for piece in pieces], np.int32)
    in_bytes = np.array([(piece.begin, piece.end) for piece in pieces], np.int64).reshape(-1, 2)
    for i in range(len(pieces) - 2, -1, -1):  # of a character's bytes only the last one has its place
        if in_bytes[i, 0] == in_bytes[i, 1] == in_bytes[i + 1, 0] and processor.is_byte(int(ids[i])):
            in_bytes[i, 1] = in_bytes[i + 1, 1]
    characters = np.append(byte_offsets(text)[:, 0], len(text)).astype(np.int32)
    return ids, characters[in_bytes]


def _join(parts: Sequence[list[int]], separator: list[int]) -> list[int]:
    joined = list(parts[0])
    for part in parts[1:]:
        joined += separator
        joined += part
    return joined


def train_subwords(config: SentencePiece, texts: Iterable[str]) -> bytes:
    """Returns a serialized model trained on a sample of `texts`.

    Raises DataError if there is no text, or if it cannot fill or does not fit `vocab_size`.
    """
    sentences = sample(_sentences(texts), config.max_training_characters)
    if not sentences:
        raise DataError("the tokenizer cannot be trained: there is no text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            # Unigram stops early where the text is too small; byte-pair encoding must fill its vocabulary.
            hard_vocab_limit=config.algorithm == "bpe",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,  # indentation costs one token, not one per space
            split_digits=True,  # numbers are spelled alike wherever they stand
            byte_fallback=True,
            user_defined_symbols=["\n"],
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=_THREADS,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=4,
        )
    except RuntimeError as error:
        raise DataError(_explain(str(error), config)) from error
    return model.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for part in _UNTRAINABLE.split(line):
                for start in range(0, len(part), _MAX_SENTENCE_CHARACTERS):
                    yield part[start : start + _MAX_SENTENCE_CHARACTERS]


def sample(sentences: Iterable[str], max_characters: int) -> list[str]:
    """Returns sentences of at most `max_characters` in all, each equally likely, in their order.

    Every sentence draws a number and the largest are dropped, so that one pass is enough.
    """
    draw = random.Random(0).random
    kept: list[tuple[float, int, str]] = []  # a heap of (-draw, index, sentence)
    characters = 0
    for index, sentence in enumerate(sentences):
        heapq.heappush(kept, (-draw(), index, sentence))
        characters += len(sentence)
        while characters > max_characters:
            characters -= len(heapq.heappop(kept)[2])
    return [sentence for _, _, sentence in sorted(kept, key=lambda item: item[1])]


def _explain(message: str, config: SentencePiece) -> str:
    if largest := re.search(r"too high.*<= (\d+)", message):
        return (
            f"the text is too small for vocab_size {config.vocab_size}: "
            f"the largest possible with {config.algorithm} is {largest[1]}"
        )
    if needed := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", message):
        return (
            f"vocab_size {config.vocab_size} is too small: this text needs more than {needed[1]}; "
            "raise vocab_size or lower character_coverage"
        )
    return f"the tokenizer cannot be trained on this text: {message}"
