"""Text ↔ integers, behind one small protocol.

Trained here without loss: subwords (SentencePiece), characters and bytes. Their ids 0 to 3 are padding, unknown,
begin of document and end of document, and what is encoded is decoded to the very same text, except that a
character tokenizer knows only its alphabet. Trained here or taken from Hugging Face: WordPiece and byte-level
BPE, with the ids and the normalization of those. No text can spell a special token: `encode("</s>")` is ordinary
pieces.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data import config as configs
from data.characters import ByteTokenizer, CharacterTokenizer
from data.document import DataError
from data.pretrained_tokenizer import PretrainedTokenizer, load_folder, load_saved
from data.special_tokens import MASK, SENTINEL, ExtendedTokenizer
from data.subwords import SentencePieceTokenizer, train_subwords
from data.tokenizer_training import train_byte_bpe, train_wordpiece
from data.vocabulary import FORMAT_VERSION


class Tokenizer(Protocol):
    """What the rest of the code knows of a tokenizer. Instances are immutable and can be pickled.

    `vocab_size` counts all ids; `encode` adds no special ids; `decode` drops them. `encode` raises
    UnicodeEncodeError for a text with lone surrogates, which is not Unicode.

    Attributes:
      mask_id: stands for a hidden token; None where there is none, see `with_specials`.
      sentinel_ids: stand for hidden spans, in the order of use: `<extra_id_0>` first; () where there are none.
      named: further special tokens by name, such as the modes of UL2.
      special_ids: all ids that stand for no text, unk_id among them.
      content: what decides the encoding, for `fingerprint`.
    """

    kind: str
    vocab_size: int
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    named: Mapping[str, int]
    special_ids: frozenset[int]
    content: bytes

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`: int32 [number of tokens]."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns `encode` of each text, quicker."""

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns `encode` of a text, and the characters that each token stands for: int32 [tokens, 2], start and end.

        A part of a character, such as one of its bytes, stands for all of it; a token that stands for nothing in
        the text has its start as its end.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns each id's name, for display only."""

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        """Returns where words begin: bool, the shape of `ids` (int [..., length]); the first token begins one.

        A word is what stands between white space; WordPiece makes punctuation and Chinese characters words, too.
        """

    def save(self, folder: str | Path) -> None:
        """Writes what `load` needs to `folder`."""

    def write_official(self, folder: str | Path) -> None:
        """Writes what Hugging Face loaders need to `folder`; raises DataError where it cannot be said exactly."""


def with_specials(
    tokenizer: Tokenizer, *, mask: bool = False, num_sentinels: int = 0, names: Sequence[str] = ()
) -> Tokenizer:
    """Returns `tokenizer` with a mask, `num_sentinels` sentinels and the special tokens `names`.

    What it has already is kept; what it lacks gets ids after its own, in this order. It is returned as it is
    if it lacks nothing.
    """
    have = len(tokenizer.sentinel_ids)
    lacking = [MASK] if mask and tokenizer.mask_id is None else []
    lacking += [SENTINEL.format(i) for i in range(have, num_sentinels)]
    lacking += [name for name in names if name not in tokenizer.named]
    if not lacking:
        return tokenizer
    if isinstance(tokenizer, ExtendedTokenizer):
        return ExtendedTokenizer(tokenizer.base, (*tokenizer.added, *lacking))
    return ExtendedTokenizer(tokenizer, tuple(lacking))


def without_added(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer that `with_specials` was given: it makes the same ids of every text."""
    return tokenizer.base if isinstance(tokenizer, ExtendedTokenizer) else tokenizer


def load(path: str | Path) -> Tokenizer:
    """Returns the tokenizer that `save` wrote to the folder `path`, of a Hugging Face folder or a `.model` file.

    Raises DataError if it is missing, damaged or of another version.
    """
    path = Path(path)
    try:
        if path.is_file():
            return SentencePieceTokenizer(path.read_bytes())
        if not path.is_dir():
            raise DataError(f"{path}: no tokenizer can be read here: there is no such folder")
        described = path / "tokenizer.json"
        description = json.loads(described.read_text(encoding="utf-8")) if described.exists() else None
        if description is None or isinstance(description, dict) and "model" in description:
            return load_folder(path)
        if not isinstance(description, dict) or description.get("version") != FORMAT_VERSION:
            raise DataError(f"{path}: tokenizer.json is not of version {FORMAT_VERSION}")
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
    if kind == PretrainedTokenizer.kind:
        return load_saved(path, description)
    if kind == ExtendedTokenizer.kind:
        return ExtendedTokenizer(load(path / "base"), tuple(description["added"]))
    raise ValueError(f"unknown kind {kind!r}")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Returns a hash (hexadecimal) that is equal exactly for tokenizers that encode all texts alike."""
    tokenizer = without_added(tokenizer)
    return hashlib.sha256(tokenizer.kind.encode() + b"\0" + tokenizer.content).hexdigest()


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
    if isinstance(config, configs.WordPiece):
        return train_wordpiece(config, texts)
    if isinstance(config, configs.ByteBPE):
        return train_byte_bpe(config, texts)
    return SentencePieceTokenizer(train_subwords(config, texts))
