"""What tokenizers share: the ids reserved in those that are trained here, and the description in a saved folder."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.document import DataError
from data.storage import write_atomically

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
FORMAT_VERSION = 1
_BYTE = re.compile(r"\A<0x([0-7][0-9A-F])>\Z")  # of ASCII: the others are parts of characters


def known_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Returns `ids` as Python integers; raises DataError for one that is not in the vocabulary."""
    known = [int(i) for i in ids]
    for i in known:
        if not 0 <= i < vocab_size:
            raise DataError(f"token id {i} is outside the vocabulary of {vocab_size}")
    return known


def word_starts(ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns where words begin: bool, the shape of `ids` (int [..., length]).

    Args:
      begins: bool [vocab_size]; such a token begins a word wherever it stands, as "▁the" does.
      ends: bool [vocab_size]; the token after such a one begins a word, as after a newline.
    """
    starts = begins[ids]
    starts[..., 1:] |= ends[ids[..., :-1]]
    starts[..., :1] = True
    return starts


def flags(vocab_size: int, ids: Iterable[int]) -> np.ndarray:
    """Returns bool [vocab_size], True at `ids`."""
    table = np.zeros(vocab_size, bool)
    table[list(ids)] = True
    return table


def space_tables(pieces: Iterable[str], special_ids: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns `begins` and `ends` of `word_starts` for subwords that carry the space before their word.

    Args:
      pieces: [vocab_size] the text of each token, in which "\u2581" is a space, too, and "<0x09>" a byte.
    """
    texts = [_BYTE.sub(lambda byte: chr(int(byte[1], 16)), piece).replace("\u2581", " ") for piece in pieces]
    special = flags(len(texts), special_ids)
    begins = np.array([text[:1].isspace() for text in texts], bool)
    # A space belongs to what follows it, even alone: T5 writes " a" in two pieces. A newline or tab does not.
    ends = np.array([text[-1:].isspace() and text[-1] != " " for text in texts], bool)
    return begins | special, ends | special


def save_description(folder: str | Path, description: dict) -> None:
    """Writes tokenizer.json, which makes `folder` a tokenizer and is therefore written last."""
    text = json.dumps({"version": FORMAT_VERSION, **description}, indent=1, sort_keys=True, ensure_ascii=True)
    write_atomically(Path(folder) / "tokenizer.json", text.encode())
