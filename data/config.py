"""Every choice about data, as frozen and validated pydantic models.

Imports nothing but pydantic, so `--help` stays quick.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator


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


class PythonDocs(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """The documentation that comes with every Python: over 200,000 words of English, no download."""

    kind: Literal["python_docs"] = "python_docs"


Source = Annotated[Files | HuggingFace | PythonDocs, Field(discriminator="kind")]


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


class Characters(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """One token per character of the training documents' alphabet."""

    kind: Literal["characters"] = "characters"


class Bytes(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """One token per UTF-8 byte: nothing to train, nothing unknown."""

    kind: Literal["bytes"] = "bytes"


Tokenizer = Annotated[SentencePiece | Characters | Bytes, Field(discriminator="kind")]


class DataConfig(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """From sources to batches."""

    train: tuple[Source, ...] = Field(
        (PythonDocs(),), min_length=1, description="Where the training documents come from."
    )
    validation: tuple[Source, ...] = Field(
        (),
        description="Where the validation documents come from; empty: hold out training documents.",
    )
    held_out_fraction: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="Share of the training text held out for validation: whole documents chosen by a hash of their "
        "text, and the ends of long ones; used only where `validation` is empty.",
    )
    cleaning: Cleaning = Field(Cleaning(), description="What is done to the text of each document.")
    tokenizer: Tokenizer = Field(SentencePiece(), description="How text becomes integers.")
    length: int = Field(256, ge=2, le=1_048_576, description="Tokens per example.")
    attend_across_documents: bool = Field(
        False,
        description="Let tokens attend to earlier documents in the same example (the faster, simpler mask).",
    )
    cache_dir: str = Field(".cache/tokens", min_length=1, description="Where tokenized documents are kept.")
    tokenizer_processes: int | None = Field(
        None, ge=1, description="Processes that tokenize; none: one per processor core."
    )
    num_workers: int = Field(0, ge=0, le=256, description="Processes that assemble batches; 0: threads instead.")
    prefetch: int = Field(4, ge=1, le=1024, description="Batches prepared ahead of the training step.")

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """One source stands for a tuple of one, a path for `Files`, the word python_docs for `PythonDocs`."""
        sources = (value,) if isinstance(value, str | dict | BaseModel) else value
        if not isinstance(sources, tuple | list):
            return value
        words = {"python_docs": {"kind": "python_docs"}}
        return tuple(words.get(s, {"path": s, "kind": "files"}) if isinstance(s, str) else s for s in sources)
