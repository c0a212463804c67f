"""Random changes of training examples: the edits of words of EDA (Wei & Zou 2019), and dropped tokens.

They depend on the seed, the epoch and the number of the example alone, not on batches, processes or where a run went
on. Texts that were translated there and back (Sennrich et al. 2016) are records like any other: one more source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.document import DataError
from data.records import Record
from data.streams import read_chunks
from data.tagged_words import SPACELESS
from data.task_config import Augmentation, Classification, Dialogue, Regression, Task, TextToText

if TYPE_CHECKING:
    from data.examples import Examples
    from data.task_encoding import Row

_WORD = re.compile(f"{SPACELESS}|(?:(?!{SPACELESS})\\S)+")  # a Chinese character is a word
_BESIDE_SPACELESS = re.compile(f"(?<={SPACELESS}) | (?={SPACELESS})")
_EDITED = ("text", "second_text", "source")


def check_augmentation(config: Augmentation, objective: Task) -> None:
    """Raises DataError for changes that the task has no place for."""
    if _edits_words(config) and not isinstance(objective, Classification | Regression | TextToText):
        raise DataError(
            f"data.augmentation: words of {objective.kind} cannot be edited under their labels; only token_dropout "
            "is for all tasks but dialogue"
        )
    if config.token_dropout and isinstance(objective, Dialogue):
        raise DataError("data.augmentation.token_dropout is not for dialogue, whose inputs are its targets, too")


def _edits_words(config: Augmentation) -> bool:
    return max(config.replace, config.insert, config.swap, config.delete) > 0


@dataclass(frozen=True)
class Augmenter:
    """Makes the examples of an epoch of `examples`."""

    examples: Examples
    seed: int

    @property
    def edits_words(self) -> bool:
        """Whether examples change their length."""
        return _edits_words(self.examples.augmentation)

    def row(self, number: int, epoch: int) -> Row:
        """Returns example `number` as it is in `epoch`."""
        examples, config = self.examples, self.examples.augmentation
        random = np.random.default_rng([self.seed, epoch, number])
        row = examples.row(number)
        if self.edits_words:
            record = examples.records[examples.record_of[number]]
            edits = {name: self._edited(record.fields[name], random) for name in _EDITED if name in record.fields}
            edited = Record({**record.fields, **edits}, record.origin)
            [[row]] = examples.encoder.rows([edited], Counter())
        if config.token_dropout:
            name = "sources" if "sources" in row else "inputs"
            row = {**row, name: self._dropped(row[name], random)}
        return row

    def _dropped(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        tokenizer = self.examples.encoder.tokenizer
        dropped = random.random(len(tokens)) < self.examples.augmentation.token_dropout
        dropped &= ~np.isin(tokens, list(tokenizer.special_ids))
        return np.where(dropped, tokenizer.unk_id, tokens).astype(np.int32)

    @cached_property
    def _synonyms(self) -> Mapping[str, list[str]]:
        path = self.examples.augmentation.synonyms
        return read_synonyms(Path(path)) if path else {}

    def _edited(self, text: str, random: np.random.Generator) -> str:
        return edit_words(text, self.examples.augmentation, self._synonyms, random)


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Returns the synonyms of each word of a file with a word and its synonyms a line; a word may have several lines.

    Between them stand tabs, where a line has any, else white space. Case does not count.
    """
    try:
        text = b"".join(read_chunks(path)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the synonyms cannot be read: {error}") from error
    lines = (line.split("\t") if "\t" in line else line.split() for line in text.splitlines())
    rows = [[word.strip() for word in line if word.strip()] for line in lines]
    found: dict[str, list[str]] = {}
    for word, *synonyms in filter(None, rows):
        if synonyms:
            found.setdefault(word.casefold(), []).extend(synonyms)
    return found


def edit_words(text: str, config: Augmentation, synonyms: Mapping[str, list[str]], random: np.random.Generator) -> str:
    """Returns `text` with the edits of EDA: replaced, inserted, swapped and deleted words, in this order.

    Of n words share * n are edited, rounded up or down at random so that the expected share is the one asked for. At
    least one word is left. Words that come from an edit stand between single spaces, but for Chinese characters.
    """
    words = _WORD.findall(text)
    if not words:
        return text
    original = list(words)

    def chosen(share: float, places: Sequence[int]) -> np.ndarray:
        count = min(int(share * len(words) + random.random()), len(places))
        return random.choice(np.array(places, np.int64), count, replace=False)

    def synonym(word: str) -> str:
        return str(random.choice(synonyms[word.casefold()]))

    def replaceable() -> list[int]:
        return [place for place, word in enumerate(words) if word.casefold() in synonyms]

    for place in chosen(config.replace, replaceable()):
        words[place] = synonym(words[place])
    sources = [words[place] for place in chosen(config.insert, replaceable() if synonyms else range(len(words)))]
    for word in sources:
        new = synonym(word) if synonyms else word
        words.insert(int(random.integers(len(words) + 1)), new)
    for place in chosen(config.swap, range(len(words))):
        other = int(random.integers(len(words)))
        words[place], words[other] = words[other], words[place]
    deleted = set(chosen(config.delete, range(len(words)))[: len(words) - 1].tolist())
    words = [word for place, word in enumerate(words) if place not in deleted]
    return text if words == original else _BESIDE_SPACELESS.sub("", " ".join(words))


def without_records(examples: Examples) -> Examples:
    """Returns what batches need of examples whose words are not edited, for worker processes to copy less."""
    return examples if _edits_words(examples.augmentation) else replace(examples, records=())
