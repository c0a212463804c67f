"""Tokenizers of Hugging Face folders, with the ids of their official loaders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from data.document import DataError
from data.marian import MarianBackend
from data.storage import write_atomically
from data.tokenizer_families import FAMILIES, ROLES, SENTENCEPIECE_FILES, Files, Settings, Tokens, family_of, read_json
from data.vocabulary import flags, known_ids, save_description, space_tables, word_starts

if TYPE_CHECKING:
    import tokenizers

# One of these must be there; all of a line belong together.
_VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("source.spm", "target.spm", "vocab.json"),
    *((name,) for name in SENTENCEPIECE_FILES),
)
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja")
_FOLDER = "official"  # below a folder of ours, whose own tokenizer.json has the same name
_SENTINEL = re.compile(r"<extra_id_(\d+)>")
# How byte-level encodings write white space: the space, newline, tab and carriage return.
_BYTE_LEVEL_SPACE = str.maketrans("\u0120\u010a\u0109\u010d", " \n\t\r")


@dataclass(frozen=True)
class PretrainedTokenizer:
    """The tokenizer of a Hugging Face folder: WordPiece, byte-level BPE, Unigram, whatever its files say.

    `encode` gives the ids of the official `tokenizer(text, add_special_tokens=False)` with one difference: text
    that spells a special token, such as "[MASK]" or "</s>", is ordinary text here, where the official one puts
    the special id. So nobody can smuggle a control token into a prompt.

    Special tokens that a family does not have: padding and the unknown are the end of text (GPT-2). T5's begin of
    text is an id after all others, for which its embedding table has room; elsewhere it is the padding id, with
    which Pegasus and Marian begin their output.

    Attributes:
      files: (name, content) of the tokenizer's files, byte for byte.
      family: a key of `tokenizer_families.FAMILIES`, "marian", or "" where tokenizer.json says it all.
      side: whose text is encoded; only Marian has two vocabularies of pieces, see `for_target`.
    """

    kind: ClassVar[str] = "pretrained"
    files: tuple[tuple[str, bytes], ...] = field(repr=False)
    family: str
    side: Literal["source", "target"] = "source"
    _backend: _TokenizersBackend | MarianBackend = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        files = dict(self.files)
        if self.family == "marian":
            backend = MarianBackend(files, self.side)
        else:
            backend = _TokenizersBackend(files, self.family)
        object.__setattr__(self, "_backend", backend)
        if self._roles["eos_token"] is None:
            raise DataError("the tokenizer's files name no token that ends a text: neither eos_token nor sep_token")

    def __reduce__(self):
        return PretrainedTokenizer, (self.files, self.family, self.side)

    @property
    def for_target(self) -> PretrainedTokenizer:
        """The tokenizer of the text to be written: another one for Marian, elsewhere this one."""
        return replace(self, side="target") if self.family == "marian" else self

    # Special tokens

    @cached_property
    def _roles(self) -> dict[str, int | None]:
        """The id of each special token by its role, None where there is none."""
        ids = self._backend.special
        named = {role: ids.get(name) for role, name in self._backend.tokens.items()}
        roles = {role: named.get(role) for role in ROLES}
        roles["bos_token"] = _first(roles["bos_token"], roles["cls_token"])
        roles["eos_token"] = _first(roles["eos_token"], roles["sep_token"])
        return roles

    @property
    def eos_id(self) -> int:
        return self._roles["eos_token"]

    @property
    def pad_id(self) -> int:
        return _first(self._roles["pad_token"], self.eos_id)

    @property
    def unk_id(self) -> int:
        return _first(self._roles["unk_token"], self.eos_id)

    @cached_property
    def bos_id(self) -> int:
        lacking = len(self._backend.pieces) if self.sentinel_ids else self.pad_id
        return _first(self._roles["bos_token"], lacking)

    @property
    def mask_id(self) -> int | None:
        return self._roles["mask_token"]

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        numbered = ((match, i) for name, i in self._backend.special.items() if (match := _SENTINEL.fullmatch(name)))
        return tuple(i for _, i in sorted((int(match[1]), i) for match, i in numbered))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        roles = (self.pad_id, self.unk_id, self.bos_id, self.eos_id)
        return frozenset(roles) | frozenset(self._backend.special.values())

    @cached_property
    def named(self) -> Mapping[str, int]:
        known = {*self._roles.values(), *self.sentinel_ids}
        return {name: i for name, i in self._backend.special.items() if i not in known}

    @cached_property
    def vocab_size(self) -> int:
        return max(len(self._backend.pieces), self.bos_id + 1)

    @cached_property
    def content(self) -> bytes:
        digests = (f"{name}\0{hashlib.sha256(content).hexdigest()}\0" for name, content in self.files)
        return "".join((*digests, self.family, "\0", self.side)).encode()

    # Text

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            text.encode()  # a lone surrogate is refused here, and in the same words as by all other tokenizers
        return [np.array(ids, np.int32) for ids in self._backend.encode_batch(list(texts))]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        text.encode()
        ids, offsets = self._backend.encode_with_offsets(text)
        return np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2)

    def with_template(self, text: str, pair: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns `text`, or a pair of texts, in what the official loader puts around them.

        For example [CLS] text [SEP] pair [SEP], or text </s>.

        Returns:
          ids, type_ids: int32 [length]; type_ids tell the tokens of the two texts apart where the family does.
        """
        ids, type_ids = self._backend.with_template(text, pair)
        return np.array(ids, np.int32), np.array(type_ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([i for i in known_ids(ids, self.vocab_size) if i not in self.special_ids])

    def pieces(self, ids: Iterable[int]) -> list[str]:
        names = self._backend.pieces
        return [names[i] if i < len(names) else "<s>" for i in known_ids(ids, self.vocab_size)]

    @cached_property
    def _word_tables(self) -> tuple[np.ndarray, np.ndarray]:
        # An unknown token may be the end of a word.
        special = self.special_ids - {self.unk_id} | {self.eos_id}
        pieces = self.pieces(range(self.vocab_size))
        if self._backend.style == "wordpiece":
            begins = np.array([not piece.startswith("##") for piece in pieces], bool)
            return begins, flags(len(pieces), special)
        if self._backend.style == "byte_level":
            pieces = [piece.translate(_BYTE_LEVEL_SPACE) for piece in pieces]
        return space_tables(pieces, special)

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        return word_starts(ids, *self._word_tables)

    # Folders

    def save(self, folder: str | Path) -> None:
        self.write_official(Path(folder) / _FOLDER)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.files}
        save_description(folder, {"kind": self.kind, "family": self.family, "side": self.side, "sha256": digests})

    def write_official(self, folder: str | Path) -> None:
        """Writes the tokenizer's files as they came, for a folder that official loaders read."""
        for name, content in self.files:
            write_atomically(Path(folder) / name, content)


def load_saved(folder: Path, description: dict) -> PretrainedTokenizer:
    """Returns the tokenizer that `save` wrote; raises DataError if a file is not what it was."""
    files = []
    for name, digest in description["sha256"].items():
        content = (folder / _FOLDER / Path(name).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError(f"{folder}: {_FOLDER}/{name} is damaged: its checksum is not the one in tokenizer.json")
        files.append((name, content))
    return PretrainedTokenizer(tuple(files), description["family"], description["side"])


def load_folder(folder: Path) -> PretrainedTokenizer:
    """Returns the tokenizer of a Hugging Face folder. Only JSON, text and SentencePiece files are read.

    Raises DataError if no vocabulary is there or the files do not tell how to use it.
    """
    names = dict.fromkeys((*(name for vocabulary in _VOCABULARIES for name in vocabulary), *_SETTINGS))
    files = {name: (folder / name).read_bytes() for name in sorted(names) if (folder / name).is_file()}
    if not any(files.keys() >= set(vocabulary) for vocabulary in _VOCABULARIES):
        wanted = ", ".join(" with ".join(vocabulary) for vocabulary in _VOCABULARIES)
        raise DataError(f"{folder}: no tokenizer can be read here: there is none of {wanted}")
    model = folder / "config.json"
    try:
        config = read_json({"config.json": model.read_bytes()}, "config.json") if model.is_file() else {}
        model_type = str(config.get("model_type") or "")
        family = "marian" if "source.spm" in files else family_of(files, _settings(files), model_type)
        return PretrainedTokenizer(tuple(files.items()), family)
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error if isinstance(error, DataError) else f"its files are damaged: {error!r}"
        raise DataError(f"{folder}: no tokenizer can be read here: {why}") from error


def _settings(files: Files) -> Settings:
    """The older special_tokens_map.json counts where tokenizer_config.json does not list the added tokens."""
    config = read_json(files, "tokenizer_config.json")
    special = {} if "added_tokens_decoder" in config else read_json(files, "special_tokens_map.json")
    return {**config, **special}


class _TokenizersBackend:
    """What the `tokenizers` package makes of the files, changed so that no text can spell a special token.

    Attributes:
      pieces: the name of each id.
      special: the ids of special tokens by name.
      tokens: their names by role.
      style: how a piece shows that it begins a word.
    """

    def __init__(self, files: Files, family: str):
        document, self.tokens = official_document(files, family)
        vocab = document["model"]["vocab"]
        ids = {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        added = {token["content"]: token for token in document["added_tokens"]}
        ids |= {name: token["id"] for name, token in added.items()}
        self.pieces = [""] * (max(ids.values()) + 1)
        for piece, i in ids.items():
            self.pieces[i] = piece
        roles = set(self.tokens.values())
        self.special = {name: i for name, i in ids.items() if name in roles or added.get(name, {}).get("special")}
        if document["model"].get("type", "WordPiece") == "WordPiece":
            self.style = "wordpiece"
        else:
            byte_level = "ByteLevel" in json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
            self.style = "byte_level" if byte_level else "meta_space"
        self._tokenizer = parse(json.dumps(_unspellable(document, self.special)))
        self._tokenizer.encode_special_tokens = True

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def with_template(self, text: str, pair: str | None) -> tuple[list[int], list[int]]:
        encoding = self._tokenizer.encode(text, pair, add_special_tokens=True)
        return encoding.ids, encoding.type_ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def official_document(files: Files, family: str) -> tuple[dict, Tokens]:
    """Returns the content of tokenizer.json, made of the other files where it is not there, and names by role."""
    settings = _settings(files)
    told = {role: _name(settings[role]) for role in ROLES if settings.get(role)}
    if family:
        tokens = {**FAMILIES[family].tokens, **told}
    else:
        # In a vocabulary of an unknown family, the usual names mean the usual things.
        present = {token["content"] for token in read_json(files, "tokenizer.json").get("added_tokens", ())}
        usual = (item for known in FAMILIES.values() for item in known.tokens.items())
        tokens = {**{role: name for role, name in usual if name in present}, **told}
    if "tokenizer.json" in files:
        tokenizer = parse(files["tokenizer.json"].decode())
    else:
        require_tokenizers()
        try:
            tokenizer = FAMILIES[family].build(files, settings, tokens)
        except DataError:
            raise
        except Exception as error:  # the package raises nothing narrower
            told = str(error).partition("\n")[0]
            raise DataError(f"its vocabulary files are damaged: {told}") from error
    _add_tokens(tokenizer, files, settings, tokens)
    return json.loads(tokenizer.to_str()), tokens


def _add_tokens(tokenizer: tokenizers.Tokenizer, files: Files, settings: Settings, tokens: Tokens) -> None:
    """Adds, in the official order, the tokens that the other files name and the vocabulary lacks."""
    from tokenizers import AddedToken

    special = [tokens[role] for role in ROLES if role in tokens]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    special += map(_name, more.values() if isinstance(more, dict) else more)
    listed = settings.get("added_tokens_decoder") or {}
    if not listed:
        ids = read_json(files, "added_tokens.json")
        listed = {i: {"content": name, "special": name in special} for name, i in ids.items()}
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        tokenizer.add_tokens([AddedToken(**{"normalized": not token.get("special"), **token})])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in special])


def _name(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _unspellable(document: dict, special: Iterable[str]) -> dict:
    """Returns `document` with special tokens under names that no text has where pieces are looked up.

    These names begin with a space: before pieces are looked up, every space is replaced or has split the text.
    """
    hidden = {name: f" {name}" for name in special}

    def rename(name: str) -> str:
        return hidden.get(name, name)

    model = dict(document["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[rename(piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {rename(piece): i for piece, i in vocab.items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = rename(model["unk_token"])
    if "merges" in model:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if hidden.keys().isdisjoint((*pair, "".join(pair)))]
    added = [
        {**token, "content": rename(token["content"]), "special": token["content"] in hidden}
        for token in document["added_tokens"]
    ]
    return {**document, "model": model, "added_tokens": added, "truncation": None, "padding": None}


def parse(text: str) -> tokenizers.Tokenizer:
    """Returns what tokenizer.json describes; raises DataError if it is damaged or the package is not there."""
    require_tokenizers()
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise DataError(f"tokenizer.json is damaged: {error}") from error


def require_tokenizers() -> None:
    """Raises DataError that says how to install the optional package if it is not there."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise DataError("this tokenizer needs the tokenizers package: pip install 'quire[hf]'") from error


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
