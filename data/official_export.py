"""Tokenizers that were made here → the files that Hugging Face loaders read, with the very same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from data.characters import ByteTokenizer, CharacterTokenizer
from data.document import DataError
from data.pretrained_tokenizer import PretrainedTokenizer, official_document, parse, require_tokenizers
from data.special_tokens import ExtendedTokenizer
from data.storage import write_atomically
from data.subwords import SentencePieceTokenizer
from data.tokenizer_families import SPACE, SentencePieceModel
from data.vocabulary import SPECIALS

if TYPE_CHECKING:
    import tokenizers

    from data.tokenizer import Tokenizer


def write_files(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json to `folder`.

    The official loader gives the same ids, with two exceptions: it takes text that spells a special token for that
    token, and U+2581 for a space.

    Raises DataError for a tokenizer that the format cannot express exactly.
    """
    require_tokenizers()
    backend = _backend(tokenizer)
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ("pad", "unk", "bos", "eos", "mask")}
    roles = {f"{role}_token": tokenizer.pieces([i])[0] for role, i in ids.items() if i is not None}
    more = tokenizer.pieces((*tokenizer.sentinel_ids, *tokenizer.named.values()))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": more,
        **roles,
    }
    write_atomically(Path(folder) / "tokenizer.json", backend.to_str(pretty=True).encode())
    write_atomically(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=2).encode())


def _backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if isinstance(tokenizer, ByteTokenizer):
        backend = _bytes()
    elif isinstance(tokenizer, CharacterTokenizer):
        backend = _characters(tokenizer.alphabet)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        backend = _byte_pairs(tokenizer)
    elif isinstance(tokenizer, ExtendedTokenizer):
        return _extended(tokenizer)
    elif isinstance(tokenizer, PretrainedTokenizer) and tokenizer.family != "marian":
        return parse(json.dumps(official_document(dict(tokenizer.files), tokenizer.family)[0]))
    else:
        raise DataError("the tokenizer has no exact equivalent in tokenizer.json")
    _add(backend, SPECIALS)
    return backend


def _bytes() -> tokenizers.Tokenizer:
    """Byte-pair encoding without pairs. Its names of the bytes are those of GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = {name: i for i, name in enumerate(SPECIALS)}
    # Printable bytes are called as in Latin-1, the others as the characters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    for byte in range(256):
        names[chr(byte if byte in printable else next(others))] = len(SPECIALS) + byte
    tokenizer = Tokenizer(models.BPE(names, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _characters(alphabet: str) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {name: i for i, name in enumerate((*SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIALS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _byte_pairs(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """Every pair of ordinary pieces that makes an ordinary piece is a merge; a newline is cut out before."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    model = SentencePieceModel(tokenizer.model)
    if not model.is_bpe or not tokenizer.trained_here:
        raise DataError(
            "only a SentencePiece tokenizer with algorithm=bpe that was trained here can be exported: of unigram, "
            "tokenizer.json has another order among pieces of the same score"
        )
    ids = {piece: i for i, (piece, _) in enumerate(model.vocab)}
    merges = model.merges(model.ordinary)
    made = Tokenizer(models.BPE(ids, merges, unk_token=SPECIALS[1], fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_tokens([AddedToken("\n", normalized=False, special=False)])
    return made


def _extended(tokenizer: ExtendedTokenizer) -> tokenizers.Tokenizer:
    backend = _backend(tokenizer.base)
    size = backend.get_vocab_size()
    _add(backend, (*tokenizer.base.pieces(range(size, tokenizer.base.vocab_size)), *tokenizer.added))
    return backend


def _add(backend: tokenizers.Tokenizer, names: tuple[str, ...]) -> None:
    from tokenizers import AddedToken

    backend.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
