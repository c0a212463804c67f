"""The tokens of sentences that come as lists of words, so that every word has a first token of its own."""

import re
from collections.abc import Sequence

import numpy as np

from data.tokenizer import Tokenizer

# Chinese characters, kana and their punctuation, beside which no space stands.
SPACELESS = "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003134f]"
_SPACELESS = re.compile(SPACELESS)
_META_SPACE = "\u2581"


def encode_words(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
    """Returns the tokens of each word of each sentence, at least one a word: int32 arrays.

    A word is encoded with the space before it where the tokenizer writes spaces, but not beside Chinese characters.
    A word that has no token, such as a control character that the tokenizer drops, becomes the unknown token.
    """
    writes_spaces = not np.array_equal(tokenizer.encode("a b"), np.concatenate(tokenizer.encode_batch(["a", "b"])))
    spaced = [list(zip(_spaces(words), words, strict=True)) for words in sentences]
    distinct = sorted({word for sentence in spaced for word in sentence})
    texts = [" " + word if space and writes_spaces else word for space, word in distinct]
    known = {}
    for word, ids in zip(distinct, tokenizer.encode_batch(texts), strict=True):
        if not word[0] and not writes_spaces:
            ids = _without_space(tokenizer, ids)
        known[word] = ids if len(ids) else np.array([tokenizer.unk_id], np.int32)
    return [[known[word] for word in sentence] for sentence in spaced]


def _spaces(words: Sequence[str]) -> list[bool]:
    """Returns for each word whether a space stood before it in the text that it was taken from."""
    spaceless = [bool(_SPACELESS.search(word)) for word in words]
    by_character = any(spaceless)  # then letters and digits that stand alone are characters of a text, too
    spaces = [False]
    for i in range(1, len(words)):
        single = by_character and len(words[i - 1]) == len(words[i]) == 1
        spaces.append(not (spaceless[i - 1] or spaceless[i] or single))
    return spaces


def _without_space(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Drops the space that some SentencePiece models put before every text."""
    return ids[1:] if len(ids) > 1 and tokenizer.pieces(ids[:1]) == [_META_SPACE] else ids
