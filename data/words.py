"""Words of Chinese text, which no space separates, for whole word masking (Cui et al., 2021, section 3.1)."""

import re
from collections.abc import Sequence

import numpy as np

from data.document import DataError

# The blocks that BERT counts as Chinese characters.
_CHINESE = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]+"
)


def chinese_word_starts(pieces: Sequence[str], starts: np.ndarray | None = None) -> np.ndarray:
    """Returns where words begin: bool [length], Chinese words as the segmenter of `rjieba` finds them.

    Tokens of Chinese characters that stand side by side are joined and segmented; a token begins a word if its
    first character does.

    Args:
      pieces: the tokens as the tokenizer names them, such as "北", "##京" or "▁大学".
      starts: bool [length], the tokenizer's own `word_starts`, which all other tokens keep; by default that of
        WordPiece.

    Raises DataError if the optional package is not there.
    """
    cut = _segmenter()
    if starts is None:
        starts = np.array([not piece.startswith("##") for piece in pieces], bool)
    starts = starts.copy()
    starts[:1] = True
    run: list[str] = []
    for i, piece in enumerate([*pieces, ""]):
        text = piece.removeprefix("##").removeprefix("\u2581")
        chinese = _CHINESE.fullmatch(text) is not None
        if run and not (chinese and not piece.startswith("\u2581")):
            starts[i - len(run) : i] = _segment(run, cut)
            run = []
        if chinese:
            run.append(text)
    return starts


def _segment(run: list[str], cut) -> np.ndarray:
    """Returns bool [len(run)], True where the first character of a text begins a word."""
    ends = np.cumsum([0, *map(len, cut("".join(run)))])
    offsets = np.cumsum([0, *map(len, run[:-1])])
    return np.isin(offsets, ends)


def _segmenter():
    try:
        import rjieba
    except ImportError as error:
        raise DataError("Chinese words need the rjieba package: pip install 'quire[chinese]'") from error
    return rjieba.cut
