"""Special tokens that a tokenizer lacks, appended after its own: masks, sentinels, modes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from data.vocabulary import known_ids, save_description

if TYPE_CHECKING:
    from data.tokenizer import Tokenizer

MASK = "<mask>"
SENTINEL = "<extra_id_{}>"
_IS_SENTINEL = re.compile(r"<extra_id_\d+>")


@dataclass(frozen=True)
class ExtendedTokenizer:
    """`base`, with a special id for each name in `added`, from base.vocab_size on.

    It encodes every text as `base` does: no text can spell an added name.
    """

    kind: ClassVar[str] = "extended"
    base: Tokenizer
    added: tuple[str, ...]

    @cached_property
    def _added_ids(self) -> dict[str, int]:
        return {name: self.base.vocab_size + i for i, name in enumerate(self.added)}

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size + len(self.added)

    @property
    def pad_id(self) -> int:
        return self.base.pad_id

    @property
    def unk_id(self) -> int:
        return self.base.unk_id

    @property
    def bos_id(self) -> int:
        return self.base.bos_id

    @property
    def eos_id(self) -> int:
        return self.base.eos_id

    @property
    def mask_id(self) -> int | None:
        return self._added_ids.get(MASK, self.base.mask_id)

    @cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        added = (i for name, i in self._added_ids.items() if _IS_SENTINEL.fullmatch(name))
        return (*self.base.sentinel_ids, *added)

    @cached_property
    def named(self) -> Mapping[str, int]:
        known = {self.mask_id, *self.sentinel_ids}
        return {**self.base.named, **{name: i for name, i in self._added_ids.items() if i not in known}}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return self.base.special_ids | frozenset(self._added_ids.values())

    @property
    def content(self) -> bytes:
        return self.base.content

    def encode(self, text: str) -> np.ndarray:
        return self.base.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.base.encode_batch(texts)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self.base.encode_with_offsets(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self.base.decode(i for i in known_ids(ids, self.vocab_size) if i < self.base.vocab_size)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        size = self.base.vocab_size
        known = known_ids(ids, self.vocab_size)
        own = self.base.pieces(i if i < size else self.pad_id for i in known)
        return [self.added[i - size] if i >= size else piece for i, piece in zip(known, own, strict=True)]

    def word_starts(self, ids: np.ndarray) -> np.ndarray:
        added = ids >= self.base.vocab_size
        starts = self.base.word_starts(np.where(added, self.base.pad_id, ids))
        return starts | added

    def save(self, folder: str | Path) -> None:
        self.base.save(Path(folder) / "base")
        save_description(folder, {"kind": self.kind, "added": list(self.added)})

    def write_official(self, folder: str | Path) -> None:
        from data.official_export import write_files

        write_files(self, folder)
