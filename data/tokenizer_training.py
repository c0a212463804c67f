"""Trains WordPiece and byte-level byte-pair encoding with the `tokenizers` package, repeatably."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from data.config import ByteBPE, WordPiece
from data.document import DataError
from data.pretrained_tokenizer import PretrainedTokenizer, require_tokenizers
from data.subwords import sample
from data.tokenizer_families import byte_bpe, wordpiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# RoBERTa's, so that padding and masks have ids of their own; GPT-2 has one token for everything.
_BYTE_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_SAMPLED_CHARACTERS = 4096  # in a row, so that newlines and indentation are seen between words


def train_wordpiece(config: WordPiece, texts: Iterable[str]) -> PretrainedTokenizer:
    """Returns BERT's tokenizer with a vocabulary made from a sample of `texts`.

    BERT's own trainer was never published; pieces are merged by frequency here, as in byte-pair encoding.
    Raises DataError if there is no text or `vocab_size` is too small.
    """
    require_tokenizers()
    from tokenizers import trainers

    names = list(_BERT_TOKENS.values())
    tokenizer = wordpiece({name: i for i, name in enumerate(names)}, _BERT_TOKENS, lowercase=config.lowercase)
    parts = _sample(texts, config.max_training_characters)
    characters, inside = _characters(tokenizer, parts, config.character_coverage)
    # The trainer would number them as a hash table gives them, another way in every process.
    first = [*names, *characters, *(f"##{character}" for character in inside)]
    if len(first) > config.vocab_size:
        raise DataError(
            f"vocab_size {config.vocab_size} is too small: this text needs more than {len(first)}; "
            "raise vocab_size or lower character_coverage"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=first,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(parts, trainer)
    trained = wordpiece(tokenizer.get_vocab(), _BERT_TOKENS, lowercase=config.lowercase)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": config.lowercase}
    return _pretrained(trained, "bert", _BERT_TOKENS, **settings)


def train_byte_bpe(config: ByteBPE, texts: Iterable[str]) -> PretrainedTokenizer:
    """Returns GPT-2's tokenizer with merges learned from a sample of `texts`, and RoBERTa's five special tokens.

    Raises DataError if there is no text.
    """
    require_tokenizers()
    from tokenizers import pre_tokenizers, trainers

    tokenizer = byte_bpe({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(_BYTE_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(texts, config.max_training_characters), trainer)
    return _pretrained(tokenizer, "gpt2", _BYTE_TOKENS, tokenizer_class="GPT2Tokenizer")


def _sample(texts: Iterable[str], max_characters: int) -> list[str]:
    parts = sample(_parts(texts), max_characters)
    if not any(map(str.strip, parts)):
        raise DataError("the tokenizer cannot be trained: there is no text")
    return parts


def _parts(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _SAMPLED_CHARACTERS):
            yield text[start : start + _SAMPLED_CHARACTERS]


def _characters(tokenizer: Tokenizer, parts: Iterable[str], coverage: float) -> tuple[list[str], list[str]]:
    """Returns the most frequent characters, `coverage` of all that stand in words, and which stand inside words."""
    words: Counter[str] = Counter()
    for part in parts:
        text = tokenizer.normalizer.normalize_str(part)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        inside.update(word[1:])
    kept, wanted = [], coverage * counts.total()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if wanted <= 0:
            break
        kept.append(character)
        wanted -= count
    return sorted(kept), sorted(inside.intersection(kept))


def _pretrained(tokenizer: Tokenizer, family: str, tokens: dict[str, str], **settings: object) -> PretrainedTokenizer:
    """Returns the tokenizer of a folder as Hugging Face would write it."""
    tokenizer.add_special_tokens(list(tokens.values()))
    config = json.dumps({**tokens, **settings}, indent=2, sort_keys=True)
    contents = {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": config}
    return PretrainedTokenizer(tuple((name, text.encode()) for name, text in contents.items()), family)
