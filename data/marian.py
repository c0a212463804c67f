"""Marian's tokenizer: two SentencePiece models, whose pieces get their ids from one vocab.json.

Junczys-Dowmunt et al., 2018; the layout is that of the OPUS-MT models (Tiedemann and Thottingal, 2020).
"""

import json
from collections.abc import Mapping
from typing import Literal

import sentencepiece

from data.document import DataError
from data.subwords import piece_offsets


class MarianBackend:
    """Encodes with source.spm or target.spm, decodes with target.spm; ids are those of vocab.json.

    The official loader takes a language code such as ">>fra<<" at the start of a text as a special token. Here no
    text can spell one: put the id before the tokens; `named` of the tokenizer has them.
    """

    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    style = "meta_space"

    def __init__(self, files: Mapping[str, bytes], side: Literal["source", "target"]):
        if json.loads(files.get("tokenizer_config.json", b"{}")).get("separate_vocabs"):
            raise DataError("a Marian tokenizer with separate_vocabs is not supported")
        ids: dict[str, int] = json.loads(files["vocab.json"])
        if missing := [name for name in self.tokens.values() if name not in ids]:
            raise DataError(f"vocab.json lacks {missing[0]}")
        codes = (name for name in ids if name.startswith(">>") and name.endswith("<<"))
        self.special = {name: ids[name] for name in (*self.tokens.values(), *codes)}
        self.pieces = [""] * (max(ids.values()) + 1)
        for piece, i in ids.items():
            self.pieces[i] = piece
        self._target = _model(files, "target.spm")
        self._model = self._target if side == "target" else _model(files, "source.spm")
        self._eos_id, self._unk_id = ids["</s>"], ids["<unk>"]
        self._ids = {piece: i for piece, i in ids.items() if piece not in self.special}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # Looked up by name: a character that this model does not know may be a piece of the other one.
        encoded = self._model.encode(texts, out_type=str, num_threads=1)
        return [[self._ids.get(piece, self._unk_id) for piece in pieces] for pieces in encoded]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode_batch([text])[0], piece_offsets(self._model, text)[1].tolist()

    def with_template(self, text: str, pair: str | None) -> tuple[list[int], list[int]]:
        first, second = self.encode_batch([text, pair or ""])
        ids = [*first, *second, self._eos_id]
        return ids, [0] * len(ids)

    def decode(self, ids: list[int]) -> str:
        # Pieces of the source alone are not joined by the model of the target, so their spaces are left to do.
        return self._target.decode_pieces([self.pieces[i] for i in ids]).replace("\u2581", " ").strip()


def _model(files: Mapping[str, bytes], name: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=files[name])
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{name} is not a SentencePiece model") from error
