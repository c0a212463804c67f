"""Vocabulary files of the families of pretrained models → a tokenizer of the `tokenizers` package.

Where a folder has no tokenizer.json, its family decides what the official loader makes of the other files: the
normalization, which ids the special tokens get, and what is put around a text. Each function below is one family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from data.document import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Files = Mapping[str, bytes]
Settings = Mapping[str, object]  # tokenizer_config.json and special_tokens_map.json
Tokens = Mapping[str, str]  # bos_token, eos_token, … → its name

# In this order the official loader adds those that the vocabulary lacks.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SPACE = "\u2581"  # SentencePiece's sign for a space
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # types of SentencePiece pieces


class Family(NamedTuple):
    """What is official for a family: the names of its special tokens, and its tokenizer."""

    tokens: Tokens
    build: Callable[[Files, Settings, Tokens], Tokenizer]


def family_of(files: Files, settings: Settings, model_type: str) -> str:
    """Returns the key in `FAMILIES`, or "" where tokenizer.json speaks for itself.

    Args:
      model_type: what config.json says of the model, "" if it says nothing.

    Raises DataError if the files leave it open.
    """
    told = str(settings.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    for name in (told, model_type):
        family = _ALIASES.get(plain := re.sub(r"[^a-z0-9]", "", name.lower()), plain)
        if family in FAMILIES:
            return family
    if "tokenizer.json" in files:
        return ""
    if "vocab.txt" in files:
        return "bert"
    if "merges.txt" in files or "vocab.bpe" in files:
        return "roberta" if "<mask>" in _byte_bpe_vocabulary(files) else "gpt2"
    known = ", ".join(sorted(FAMILIES))
    named = told or model_type
    raise DataError(
        f"{next(name for name in SENTENCEPIECE_FILES if name in files)} is there, but "
        + (f"its family {named!r} is not known" if named else "neither tokenizer_config.json nor config.json tells")
        + f" how its ids are used; known families: {known}"
    )


def _bert(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """WordPiece (Devlin et al., 2019); also ELECTRA and DistilBERT."""
    vocab = {line.rstrip(): i for i, line in enumerate(files["vocab.txt"].decode().removesuffix("\n").split("\n"))}
    return wordpiece(
        vocab,
        tokens,
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        chinese_characters=bool(settings.get("tokenize_chinese_chars", True)),
    )


def wordpiece(
    vocab: Mapping[str, int],
    tokens: Tokens,
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
) -> Tokenizer:
    """Returns BERT's tokenizer; with `strip_accents` None, accents go with the case."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(dict(vocab), unk_token=tokens["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_characters, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _around_pairs(tokenizer, tokens)


def _gpt2(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Byte-level byte-pair encoding (Radford et al., 2019)."""
    lines = files.get("merges.txt", files.get("vocab.bpe", b"")).decode().split("\n")
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line and not line.startswith("#version")]
    return byte_bpe(_byte_bpe_vocabulary(files), merges, add_prefix_space=bool(settings.get("add_prefix_space", False)))


def byte_bpe(vocab: Mapping[str, int], merges: list[tuple[str, str]], *, add_prefix_space: bool = False) -> Tokenizer:
    """Returns GPT-2's tokenizer, which puts nothing around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(dict(vocab), merges, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_bpe_vocabulary(files: Files) -> dict[str, int]:
    return read_json(files, "vocab.json" if "vocab.json" in files else "encoder.json")


def _roberta(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """GPT-2's encoding between <s> and </s> (Liu et al., 2019); also BART."""
    from tokenizers import processors

    tokenizer = _gpt2(files, settings, tokens)
    start, end = ((tokens[role], tokenizer.token_to_id(tokens[role])) for role in ("cls_token", "sep_token"))
    if start[1] is None or end[1] is None:
        raise DataError(f"vocab.json lacks {start[0]} or {end[0]}")
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    return tokenizer


def _t5(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Unigram, with 100 sentinels after the pieces, the first last (Raffel et al., 2020, section 3.1.4); also mT5."""
    model = SentencePieceModel(_sentencepiece_file(files))
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(int(settings.get("extra_ids", 100))))]
    tokenizer = _unigram([*model.vocab, *sentinels], unk_id=2, charsmap=model.charsmap)
    _template(tokenizer, tokens, "$A {eos}", "$A {eos} $B {eos}")
    return _with_added(tokenizer, [(name, True) for name, _ in reversed(sentinels)] + model.added)


def _albert(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Unigram of lower-cased text without accents, in BERT's frame (Lan et al., 2020)."""
    from tokenizers import normalizers

    model = SentencePieceModel(_sentencepiece_file(files))
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    tokenizer = _unigram(model.vocab, unk_id=1, charsmap=model.charsmap, before=steps)
    return _with_added(_around_pairs(tokenizer, tokens), model.added)


def _xlm_roberta(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Unigram with fairseq's special tokens before the pieces and <mask> after them (Conneau et al., 2020)."""
    model = SentencePieceModel(_sentencepiece_file(files))
    first = [(tokens[role], 0.0) for role in ("bos_token", "pad_token", "eos_token", "unk_token")]
    vocab = [*first, *model.vocab[3:], (tokens["mask_token"], 0.0)]
    tokenizer = _unigram(vocab, unk_id=3, charsmap=model.charsmap)
    _template(tokenizer, tokens, "{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}")
    return _with_added(tokenizer, model.added)


def _pegasus(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Unigram with the pieces 103 ids later: <mask_1> hides sentences, <mask_2> tokens (Zhang et al., 2020).

    The tokens from <unk_2> on were kept free for pretraining.
    """
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    model, offset = SentencePieceModel(_sentencepiece_file(files)), int(settings.get("offset", 103))
    free = [f"<unk_{i}>" for i in range(2, offset)]
    first = [tokens["pad_token"], tokens["eos_token"], "<mask_1>", "<mask_2>", *free]
    vocab = [*((name, 0.0 if i < 4 else -100.0) for i, name in enumerate(first)), *model.vocab[2:]]
    tokenizer = _unigram(vocab, unk_id=vocab.index((tokens["unk_token"], 0.0)), charsmap=b"")
    space = normalizers.Replace(Regex(r" {2,}"), " ")
    before = normalizers.Precompiled(model.charsmap) if model.charsmap else normalizers.Replace(Regex(r"\n"), " ")
    tokenizer.normalizer = normalizers.Sequence([before, space])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    _template(tokenizer, tokens, "$A {eos}", "$A $B {eos}")
    return _with_added(tokenizer, [(name, True) for name in first] + model.added)


def _llama(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Byte-pair encoding of SentencePiece, unknown characters as bytes (Touvron et al., 2023)."""
    from tokenizers import decoders, pre_tokenizers

    model = SentencePieceModel(_sentencepiece_file(files))
    prefix = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy") else "first") if prefix else "never"
    tokenizer = model.byte_fallback_bpe(unk_token=None)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    return _begin_and_end(_with_added(tokenizer, model.added), settings, tokens)


def _gemma(files: Files, settings: Settings, tokens: Tokens) -> Tokenizer:
    """As Llama 2, but no space is put before a text (Gemma Team, 2024)."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    model = SentencePieceModel(_sentencepiece_file(files))
    tokenizer = model.byte_fallback_bpe(unk_token=tokens["unk_token"])
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _begin_and_end(_with_added(tokenizer, model.added), settings, tokens)


def read_json(files: Files, name: str) -> dict:
    """Returns the content of a JSON file, {} if it is not there."""
    try:
        content = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise DataError(f"{name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{name} is damaged: it should hold an object")
    return content


class SentencePieceModel:
    """The parts of a SentencePiece file.

    Attributes:
      vocab: (piece, score) in the order of the ids.
      ordinary: the pieces that are made from text: no special tokens, no bytes, none that the user defined.
      added: (piece, is it special) of control and user-defined pieces.
      charsmap: its normalization, compiled; b"" if it has none.
      is_bpe: made by byte-pair encoding, else by the unigram algorithm.
    """

    def __init__(self, content: bytes):
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(content)
        except DecodeError as error:
            raise DataError("not a SentencePiece model") from error
        self.vocab = [(piece.piece, piece.score) for piece in proto.pieces]
        self.ordinary = {piece.piece for piece in proto.pieces if piece.type == _NORMAL}
        kinds = (_CONTROL, _USER_DEFINED)
        self.added = [(piece.piece, piece.type == _CONTROL) for piece in proto.pieces if piece.type in kinds]
        self.charsmap = proto.normalizer_spec.precompiled_charsmap
        self.is_bpe = proto.trainer_spec.model_type == proto.trainer_spec.BPE

    def merges(self, among: Collection[str]) -> list[tuple[str, str]]:
        """The file does not say: every pair of pieces that makes a piece is one, in the order of the result."""
        return [
            (piece[:cut], piece[cut:])
            for piece, _ in self.vocab
            if piece in among
            for cut in range(1, len(piece))
            if piece[:cut] in among and piece[cut:] in among
        ]

    def byte_fallback_bpe(self, unk_token: str | None) -> Tokenizer:
        from tokenizers import Tokenizer, models

        ids = {piece: i for i, (piece, _) in enumerate(self.vocab)}
        return Tokenizer(models.BPE(ids, self.merges(ids), fuse_unk=True, byte_fallback=True, unk_token=unk_token))


def _sentencepiece_file(files: Files) -> bytes:
    return next(files[name] for name in SENTENCEPIECE_FILES if name in files)


def _unigram(vocab: list[tuple[str, float]], *, unk_id: int, charsmap: bytes, before: list | None = None) -> Tokenizer:
    """Returns a Unigram tokenizer of words with their space before them; runs of white space are one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=unk_id, byte_fallback=False))
    steps = [*(before or []), *([normalizers.Precompiled(charsmap)] if charsmap else [])]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    spaces = {"replacement": SPACE, "prepend_scheme": "always"}
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**spaces)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.Metaspace(**spaces)
    return tokenizer


def _with_added(tokenizer: Tokenizer, added: list[tuple[str, bool]]) -> Tokenizer:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(name, normalized=False, special=special) for name, special in added])
    return tokenizer


def _around_pairs(tokenizer: Tokenizer, tokens: Tokens) -> Tokenizer:
    frame = {"bos_token": tokens["cls_token"], "eos_token": tokens["sep_token"]}
    _template(tokenizer, frame, "{bos}:0 $A:0 {eos}:0", "{bos}:0 $A:0 {eos}:0 $B:1 {eos}:1")
    return tokenizer


def _begin_and_end(tokenizer: Tokenizer, settings: Settings, tokens: Tokens) -> Tokenizer:
    """Puts around a text what the configuration asks for; nothing is asked for by default."""
    bos = "{bos}:%d " if settings.get("add_bos_token") else ""
    eos = " {eos}:%d" if settings.get("add_eos_token") else ""
    if bos or eos:
        single = f"{bos}$A:%d{eos}"
        first, second = (re.sub("%d", str(part), single) for part in (0, 1))
        _template(tokenizer, tokens, first, f"{first} {second.replace('$A', '$B')}")
    return tokenizer


def _template(tokenizer: Tokenizer, tokens: Tokens, single: str, pair: str) -> None:
    from tokenizers import processors

    names = {role: tokens[f"{role}_token"] for role in ("bos", "eos") if f"{{{role}}}" in single}
    ids = [(name, tokenizer.token_to_id(name)) for name in names.values()]
    if missing := [name for name, i in ids if i is None]:
        raise DataError(f"the vocabulary lacks {missing[0]}, which its family puts around a text")
    single, pair = (template.format(**names) for template in (single, pair))
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


_FAIRSEQ = {
    **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    **{"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
}
_BERT = {
    **{"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
    **{"cls_token": "[CLS]", "sep_token": "[SEP]"},
}
_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

FAMILIES: Mapping[str, Family] = {
    "bert": Family(_BERT, _bert),
    "gpt2": Family(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"), _gpt2),
    "roberta": Family(_FAIRSEQ, _roberta),
    "t5": Family(_T5, _t5),
    "albert": Family(
        {**_BERT, "unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "[CLS]", "eos_token": "[SEP]"}, _albert
    ),
    "xlmroberta": Family(_FAIRSEQ, _xlm_roberta),
    "pegasus": Family({**_T5, "mask_token": "<mask_2>"}, _pegasus),
    "llama": Family({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, _llama),
    "gemma": Family({"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}, _gemma),
}
_ALIASES = {"distilbert": "bert", "electra": "bert", "bart": "roberta", "mt5": "t5"}
