"""Every choice about data, as frozen and validated pydantic models.

Imports nothing but pydantic, so `--help` stays quick.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from data.task_config import (
    Augmentation,
    Classification,
    Dialogue,
    Records,
    Regression,
    Replace,
    SpanAnswering,
    Tagging,
    TextToText,
)


class Files(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Text files on disk: .txt, .jsonl, .csv or .tsv, each also as .gz, .bz2, .xz or .zst."""

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1, description="A file, a folder (all supported files in it) or a glob.")
    text_field: str = Field("text", description="The field (.jsonl) or column (.csv, .tsv) that holds the text.")
    document: Literal["file", "paragraph", "line"] = Field(
        "file",
        description="What one document of a .txt file is; a paragraph ends at a blank line. "
        "The other formats have one document per record.",
    )
    span: tuple[float, float] = Field(
        (0.0, 1.0),
        description="The part of each .txt file that is read, as fractions of its characters: "
        "(0, 0.9) is nanoGPT's training part of a file, (0.9, 1) its validation part.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="On a bad record: stop with a message, or skip it and count it."
    )

    @model_validator(mode="after")
    def _span_is_a_range(self) -> "Files":
        start, end = self.span
        if not 0.0 <= start < end <= 1.0:
            raise ValueError(f"span must satisfy 0 <= start < end <= 1, got {self.span}")
        return self


class HuggingFace(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """A dataset read with the optional `datasets` package (`pip install 'quire[hf]'`)."""

    kind: Literal["huggingface"] = "huggingface"
    path: str = Field(min_length=1, description="A name on the hub, or a local folder or file of a dataset.")
    name: str | None = Field(None, description="The dataset's configuration, for example wikitext-2-raw-v1.")
    split: str = Field("train", description="The split to read.")
    text_field: str = Field("text", description="The column that holds the text.")
    fields: dict[str, str | tuple[str, ...]] = Field({}, description="For a task: as those of `records`.")
    replace: Replace = Field({}, description="For a task: as that of `records`.")


class PythonDocs(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """The documentation that comes with every Python: over 200,000 words of English, no download."""

    kind: Literal["python_docs"] = "python_docs"


Source = Annotated[Files | HuggingFace | PythonDocs | Records, Field(discriminator="kind")]


class Cleaning(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """What is done to each document's text before it is tokenized: by default nothing."""

    html: bool = Field(False, description="Strip tags, drop scripts and styles, resolve entities.")
    repair_unicode: bool = Field(False, description="Repair text that was decoded wrongly (ftfy).")
    normalize: Literal["none", "NFC", "NFD", "NFKC", "NFKD"] = Field("none", description="The Unicode normal form.")
    control_characters: bool = Field(
        False, description="Remove control and zero-width characters, except newline and tab."
    )
    white_space: bool = Field(
        False,
        description="Collapse runs of spaces and tabs, trim lines, keep at most one blank line in a row.",
    )
    stop_words: Literal["none", "english", "chinese"] = Field(
        "none",
        description="Remove stop words, as the classical pipeline of text classification does. "
        "Off by default because it destroys fluent text, which is what a language model learns.",
    )
    detokenize: Literal["none", "wikitext", "ptb", "lambada", "one_billion_words"] = Field(
        "none",
        description="Put the spacing of a tokenized corpus right, as models of raw text are measured (Radford et al. "
        "2019, section 3.1). Words and bytes are counted before that.",
    )


class SentencePiece(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Subwords trained on the training documents; unknown characters fall back to bytes."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    algorithm: Literal["unigram", "bpe"] = Field(
        "unigram", description="Unigram (Kudo, 2018) or byte-pair encoding (Sennrich et al., 2016)."
    )
    vocab_size: int = Field(
        8192,
        ge=300,
        le=1_000_000,
        description="Number of pieces, with 4 special and 256 byte pieces among them.",
    )
    character_coverage: float = Field(
        0.9995,
        gt=0.9,
        le=1.0,
        description="Share of characters with a piece of their own; the rest become bytes.",
    )
    max_training_characters: int = Field(
        50_000_000, ge=1000, description="Train on a sample of about this many characters."
    )
    path: str | None = Field(
        None,
        description="Use this trained tokenizer (a saved folder or a .model file) instead of training one.",
    )


class WordPiece(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """BERT's subwords trained on the training documents: words apart from punctuation, rare characters unknown."""

    kind: Literal["wordpiece"] = "wordpiece"
    vocab_size: int = Field(
        8192, ge=300, le=1_000_000, description="Number of pieces, with 5 special ones; BERT has 30522."
    )
    lowercase: bool = Field(True, description="Lower-case the text and strip its accents, as BERT's uncased models do.")
    character_coverage: float = Field(
        0.9995, gt=0.9, le=1.0, description="Share of characters with a piece of their own; the rest are unknown."
    )
    max_training_characters: int = Field(
        50_000_000, ge=1000, description="Train on a sample of about this many characters."
    )
    path: str | None = Field(None, description="Use this trained tokenizer (a folder) instead of training one.")


class ByteBPE(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """GPT-2's byte-pair encoding of bytes trained on the training documents: nothing unknown, nothing lost."""

    kind: Literal["byte_bpe"] = "byte_bpe"
    vocab_size: int = Field(
        8192, ge=300, le=1_000_000, description="Number of pieces, with 5 special ones and 256 bytes among them."
    )
    max_training_characters: int = Field(
        50_000_000, ge=1000, description="Train on a sample of about this many characters."
    )
    path: str | None = Field(None, description="Use this trained tokenizer (a folder) instead of training one.")


class Pretrained(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """The tokenizer of a Hugging Face folder, with the ids of its official loader."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = Field(
        min_length=1, description="A folder with tokenizer.json, vocab.txt, merges.txt or a SentencePiece model."
    )


class Characters(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """One token per character of the training documents' alphabet."""

    kind: Literal["characters"] = "characters"


class Bytes(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """One token per UTF-8 byte: nothing to train, nothing unknown."""

    kind: Literal["bytes"] = "bytes"


Tokenizer = Annotated[
    SentencePiece | WordPiece | ByteBPE | Pretrained | Characters | Bytes, Field(discriminator="kind")
]


class CausalLM(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Each token from those before it."""

    kind: Literal["causal_lm"] = "causal_lm"


class PrefixLM(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Each token after a random prefix, within which all tokens see each other.

    Liu et al. 2018; Raffel et al. 2020, section 3.2.
    """

    kind: Literal["prefix_lm"] = "prefix_lm"


class _Masking(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Which tokens of a text are chosen to be predicted."""

    rate: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are chosen.")
    masking: Literal["token", "whole_word", "chinese_whole_word", "span", "ngram"] = Field(
        "token",
        description="What is chosen at once: a token (BERT), a word (BERT's whole word masking), a word that a Chinese "
        "segmenter finds (Cui et al. 2021), a span of words (SpanBERT), or one to max_ngram words (ALBERT).",
    )
    mean_span: float = Field(
        5.0,
        ge=1,
        description="Mean of the geometric distribution of span lengths in words, before it is cut off at max_span; "
        "5 is SpanBERT's p = 0.2, which with its maximum of 10 leaves a mean of 3.8.",
    )
    max_span: int = Field(10, ge=1, description="Words in the longest span (SpanBERT, section 3.1).")
    max_ngram: int = Field(
        3, ge=1, description="Words in the longest n-gram; n is drawn in proportion to 1/n (ALBERT)."
    )
    duplicates: int | None = Field(
        None,
        ge=1,
        description="Static masking: every text has this many masks, used in turn, one per epoch (BERT's dupe_factor, "
        "10). None: another mask each time (RoBERTa).",
    )


class MaskedLM(_Masking):
    """The chosen tokens from all others (Devlin et al. 2019, section 3.1)."""

    kind: Literal["masked_lm"] = "masked_lm"
    mask_share: float = Field(0.8, ge=0, le=1, description="Share of the chosen tokens that become the mask token.")
    random_share: float = Field(
        0.1, ge=0, le=1, description="Share that become a random token; the rest stay as they are."
    )
    sentence_pairs: Literal["none", "next_sentence", "sentence_order"] = Field(
        "none",
        description="A second task on pairs of texts: does B follow A (BERT), or are the two swapped (ALBERT).",
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "MaskedLM":
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share + random_share must be at most 1, got {self.mask_share} + {self.random_share}"
            )
        return self


class ReplacedTokens(_Masking):
    """Which tokens a small masked language model has replaced (ELECTRA, Clark et al. 2020)."""

    kind: Literal["replaced_tokens"] = "replaced_tokens"
    mask_share: float = Field(
        0.85,
        ge=0,
        le=1,
        description="Share of the chosen tokens that the generator sees as the mask token; it sees the rest as they "
        "are. ELECTRA's code, which made its results, says 0.85; the paper's equations say 1.",
    )
    generator_fraction: float = Field(
        0.25, gt=0, le=1, description="Width of the generator as a fraction of the discriminator's."
    )
    discriminator_weight: float = Field(
        50.0, ge=0, description="Weight of the discriminator's loss; the generator's is 1."
    )


class SpanCorruption(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Sentinels stand for spans; the target is the spans (T5, Raffel et al. 2020, section 3.1.4)."""

    kind: Literal["span_corruption"] = "span_corruption"
    rate: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are in spans.")
    mean_span: float = Field(3.0, ge=1, description="Mean length of the spans in tokens.")


class UL2(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """A mixture of seven denoisers in three modes, R, S and X (Tay et al. 2023, table 1)."""

    kind: Literal["ul2"] = "ul2"
    sequential_share: float = Field(
        1 / 7,
        ge=0,
        le=1,
        description="Share of the examples that are S (prefix language modeling); the other six denoisers share the "
        "rest equally. All seven alike is the paper's mixture; it tried up to 0.5.",
    )
    mode_tokens: bool = Field(True, description="Put [R], [S] or [X] before the input.")


class TextInfilling(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """The text from one in which mask tokens stand for spans (BART, Lewis et al. 2020, section 2.2)."""

    kind: Literal["text_infilling"] = "text_infilling"
    rate: float = Field(0.3, gt=0, lt=1, description="Share of the tokens that are in spans.")
    mean_span: float = Field(
        3.0, gt=0, description="Mean of the Poisson distribution of span lengths; a span may be empty."
    )
    permute_sentences: bool = Field(True, description="Also shuffle the sentences of each document.")


class GapSentences(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """The important sentences from the rest of the document (PEGASUS, Zhang et al. 2020, section 3.1)."""

    kind: Literal["gap_sentences"] = "gap_sentences"
    rate: float = Field(0.3, gt=0, lt=1, description="Share of the sentences that are chosen; at least one.")
    min_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Draw the share of each text between this and `rate`; the released mixed and stochastic models "
        "have 0.15 to 0.45. None: always `rate`.",
    )
    selection: Literal["random", "lead", "principal"] = Field(
        "principal",
        description="Which sentences: random ones, the first ones, or those with the highest ROUGE-1 against the "
        "rest of their document, each scored by itself (the paper's Ind-Orig).",
    )
    noise: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Scores are multiplied by a number drawn from 1 - noise to 1 + noise (the stochastic models).",
    )
    keep_share: float = Field(
        0.1, ge=0, le=1, description="Share of the chosen sentences that stay in the input instead of being masked."
    )

    @model_validator(mode="after")
    def _rates_are_a_range(self) -> "GapSentences":
        if self.min_rate is not None and self.min_rate > self.rate:
            raise ValueError(f"min_rate must be at most the rate {self.rate}, got {self.min_rate}")
        return self


Objective = Annotated[
    CausalLM
    | PrefixLM
    | MaskedLM
    | ReplacedTokens
    | SpanCorruption
    | UL2
    | TextInfilling
    | GapSentences
    | Classification
    | Regression
    | Tagging
    | SpanAnswering
    | TextToText
    | Dialogue,
    Field(discriminator="kind"),
]


class DataConfig(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """From sources to batches."""

    train: tuple[Source, ...] = Field(
        (PythonDocs(),), min_length=1, description="Where the training documents come from."
    )
    validation: tuple[Source, ...] = Field(
        (),
        description="Where the validation documents come from; empty: hold out training documents.",
    )
    test: tuple[Source, ...] = Field(
        (), description="Where a task's test records come from; `python -m eval RUN --split test` reads them."
    )
    held_out_fraction: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="Share of the training text held out for validation: whole documents chosen by a hash of their "
        "text, and the ends of long ones; used only where `validation` is empty.",
    )
    augmentation: Augmentation = Field(Augmentation(), description="Random changes of a task's training examples.")
    cleaning: Cleaning = Field(Cleaning(), description="What is done to the text of each document.")
    tokenizer: Tokenizer = Field(SentencePiece(), description="How text becomes integers.")
    length: int = Field(256, ge=2, le=1_048_576, description="Tokens per example.")
    target_length: int | None = Field(
        None,
        ge=2,
        le=1_048_576,
        description="Tokens of the target of an encoder-decoder's example; none: what its objective needs at `length`.",
    )
    attend_across_documents: bool = Field(
        False,
        description="Let tokens attend to other documents in the same example (the faster, simpler mask). "
        "An example of an input and a target of its own is one text in any case.",
    )
    cache_dir: str = Field(".cache/tokens", min_length=1, description="Where tokenized documents are kept.")
    tokenizer_processes: int | None = Field(
        None, ge=1, description="Processes that tokenize; none: one per processor core."
    )
    num_workers: int = Field(0, ge=0, le=256, description="Processes that assemble batches; 0: threads instead.")
    prefetch: int = Field(4, ge=1, le=1024, description="Batches prepared ahead of the training step.")

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """One source stands for a tuple of one, a path for `Files`, the word python_docs for `PythonDocs`."""
        sources = (value,) if isinstance(value, str | dict | BaseModel) else value
        if not isinstance(sources, tuple | list):
            return value
        words = {"python_docs": {"kind": "python_docs"}}
        return tuple(words.get(s, {"path": s, "kind": "files"}) if isinstance(s, str) else s for s in sources)
