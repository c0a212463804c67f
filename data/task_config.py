"""Tasks with labelled records: where the records come from and what is learned from them.

A task says which fields an example needs, a source says which column of its records each field is.
Imports nothing but pydantic, so `--help` stays quick.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator


class _Part(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Immutable, typed, and closed to unknown fields."""


def repeated(names: Sequence[str]) -> str | None:
    """Returns the first name that stands there before."""
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def _valid_patterns(replace: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    for pattern, replacement in (edit for edits in replace.values() for edit in edits.items()):
        compiled = _pattern(pattern)
        try:
            compiled.sub(replacement, "")
        except (re.error, IndexError) as error:
            raise ValueError(f"{replacement!r} cannot replace matches of {pattern!r}: {error}") from error
    return replace


def _pattern(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


Replace = Annotated[dict[str, dict[str, str]], AfterValidator(_valid_patterns)]


class Records(_Part):
    """Labelled records on disk, each file also as .gz, .bz2, .xz or .zst.

    jsonl: one object a line. json: one list of objects. csv, tsv: one record a line, or as csv quotes it.
    lines: one record a line of a text file, the column `text`, or the groups of `pattern`. matches: one record for
    each match of `pattern` in the text of a file. conll: one token and its columns a line, a blank line ends a
    sentence; without `columns` the first is `tokens` and the last `tags`. squad: the questions of a SQuAD file.
    persona_chat: conversations with numbered lines. folders: one text a file, the column `text`, below a folder
    named by its `label` (as IMDB). Every record also has the column `file`, the file's name.
    """

    kind: Literal["records"] = "records"
    path: str = Field(min_length=1, description="A file, a folder (all supported files in it) or a glob.")
    format: Literal[
        "auto", "jsonl", "json", "csv", "tsv", "lines", "matches", "conll", "squad", "persona_chat", "folders"
    ] = Field("auto", description="What the file is; auto: what its ending says, .jsonl, .json, .csv, .tsv or .txt.")
    columns: tuple[str, ...] = Field(
        (), description="Names of the columns, in order, where the file itself does not name them (csv, tsv, conll)."
    )
    beside: dict[str, str] = Field(
        {},
        description="More columns from files in the same folder with as many lines (lines), for example "
        '{"de": "train.de"}.',
    )
    pattern: str | None = Field(
        None, description="A regular expression whose named groups are the columns (lines, matches)."
    )
    fields: dict[str, str | tuple[str, ...]] = Field(
        {},
        description="Field of the task → the column it is, a text with columns in braces, or a list of these: "
        '{"source": "{title}. {body}", "target": ["summary1", "summary2"]}. "answers.text" is what is called text '
        "within answers. A field that is not here is the column of its own name.",
    )
    replace: Replace = Field(
        {},
        description="Field → regular expressions and what takes the place of their matches, one after the other: "
        '{"label": {"^1$": "spam"}}. Numbers are read as text for it.',
    )
    encoding: str = Field("utf-8", description="Of the file's text.")
    quoted: bool | None = Field(
        None, description='Whether " quotes columns: none = in csv but not in tsv, as GLUE has them.'
    )
    part: tuple[float, float] = Field(
        (0.0, 1.0),
        description="The part of the records that is read, chosen by a hash of their fields: (0, 0.8) and (0.8, 1) "
        "split a file that has no splits, equal records on one side.",
    )
    drop_repeats: bool = Field(False, description="Read only the first of equal records.")
    max_records: int | None = Field(None, gt=0, description="Read at most so many, in the file's order.")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="On a bad record: stop with a message, or skip it and count it."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        start, end = self.part
        if not 0.0 <= start < end <= 1.0:
            raise ValueError(f"part must satisfy 0 <= start < end <= 1, got {self.part}")
        try:
            newline = b"\n".decode(self.encoding, "surrogateescape")
        except (LookupError, UnicodeError):
            newline = None
        if newline != "\n":
            raise ValueError(f"encoding {self.encoding!r} is unknown, or none in which a newline is the byte 0x0a")
        if self.pattern is not None and not _pattern(self.pattern).groupindex:
            raise ValueError(f"pattern {self.pattern!r} has no named group, such as (?P<text>.*)")
        if self.pattern is not None and self.beside:
            raise ValueError("pattern and beside exclude each other; leave one out")
        if (name := repeated(self.columns)) is not None:
            raise ValueError(f"columns names {name!r} twice")
        return self


class Augmentation(_Part):
    """What is changed at random in a training example, anew every time it is seen: by default nothing.

    The first four are the edits of EDA (Wei & Zou 2019), each given as the share of an example's words.
    """

    replace: float = Field(0.0, ge=0, lt=1, description="Replace words by synonyms; needs `synonyms`.")
    synonyms: str | None = Field(None, description="A .tsv or text file: a word and its synonyms a line.")
    insert: float = Field(0.0, ge=0, lt=1, description="Insert synonyms, or without them words of the same text.")
    swap: float = Field(0.0, ge=0, lt=1, description="Swap two words.")
    delete: float = Field(0.0, ge=0, lt=1, description="Delete words.")
    token_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Replace tokens of the input by the unknown token (word dropout, Iyyer et al. 2015).",
    )

    @model_validator(mode="after")
    def _has_synonyms(self) -> Self:
        if self.replace and self.synonyms is None:
            raise ValueError("replace needs synonyms, a file with a word and its synonyms a line")
        return self


class _Labels(_Part):
    labels: tuple[str, ...] = Field(min_length=2, description="The labels as the records have them, in order of ids.")
    names: tuple[str, ...] = Field((), description="What people call the labels; empty: as the records do.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if (label := repeated(self.labels)) is not None:
            raise ValueError(f"labels names {label!r} twice")
        if self.names and len(self.names) != len(self.labels):
            raise ValueError(f"names must be as many as labels, {len(self.labels)}, not {len(self.names)}")
        return self


class Classification(_Labels):
    """One label of a text or of a pair of texts: sentiment, topic, spam, entailment, paraphrase.

    Fields: text, [second_text], label. Head: sequence.
    """

    kind: Literal["classification"] = "classification"
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = Field(
        "none", description="Weight of each label's loss; balanced: in inverse proportion to its training examples."
    )

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != len(self.labels):
            raise ValueError(f"class_weights must be as many as labels, {len(self.labels)}")
        return self


class Regression(_Part):
    """A number for a text or a pair of texts, by squared error: similarity. Fields: text, [second_text], label."""

    kind: Literal["regression"] = "regression"
    minimum: float = Field(0.0, description="Least label; a prediction below it becomes it.")
    maximum: float = Field(5.0, description="Greatest label.")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.minimum < self.maximum:
            raise ValueError(f"minimum {self.minimum} must be less than maximum {self.maximum}")
        return self


class Tagging(_Part):
    """The entities of a sentence, by one tag for each word. Fields: tokens, tags. Head: tokens."""

    kind: Literal["tagging"] = "tagging"
    types: tuple[str, ...] = Field(min_length=1, description="Types of entities, such as PER, LOC, ORG.")
    scheme: Literal["iob1", "iob2", "iobes", "conlleval"] = Field(
        "iob2",
        description="Of the records' tags: B only between two entities of a type (iob1), B first (iob2), with E last "
        "and S single (iobes), or any of these where a tag out of place begins an entity (conlleval).",
    )
    learned_scheme: Literal["iob2", "iobes"] = Field("iob2", description="Of the tags that the model learns.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if "" in self.types:
            raise ValueError("types has an empty name")
        if (name := repeated(self.types)) is not None:
            raise ValueError(f"types names {name!r} twice")
        return self


class SpanAnswering(_Part):
    """The part of a text that answers a question (SQuAD). Fields: id, context, question, answers. Head: span.

    A long context is read in overlapping windows (Devlin et al. 2019, section 4.2).
    """

    kind: Literal["span_answering"] = "span_answering"
    stride: int = Field(128, gt=0, description="Tokens from the start of one window to that of the next.")
    max_question_length: int = Field(64, gt=0, description="Tokens of a question; the rest is cut off.")
    max_answer_length: int = Field(30, gt=0, description="Tokens of the longest answer that is considered.")
    may_have_no_answer: bool = Field(False, description="Questions may have none (SQuAD 2.0).")
    language: Literal["english", "chinese"] = Field(
        "english", description="Of the scores: as SQuAD's official script, or as CMRC 2018's, for Chinese."
    )


class TextToText(_Part):
    """A text from a text: translation, summarization, questions, and any classification as text (T5).

    Fields: source, target (a text, or several that are all right).
    """

    kind: Literal["text_to_text"] = "text_to_text"
    prefix: str = Field("", description='Put before every source, such as "summarize: " (Raffel et al. 2020).')
    words: dict[str, str] = Field(
        {}, description='Targets by other words, such as {"0": "negative", "1": "positive"}, both ways.'
    )
    scores: tuple[
        Literal["bleu", "compound_split_bleu", "chrf", "rouge", "exact_match", "token_f1", "accuracy", "distinct"], ...
    ] = Field(("bleu", "chrf"), min_length=1, description="What is measured of the texts written.")
    language: Literal["english", "chinese", "other"] = Field(
        "other", description="Of the targets; the scores split Chinese into characters and stem nothing but English."
    )


class Dialogue(_Part):
    """The assistant's turns of conversations, by a decoder that reads roles as special tokens.

    Fields: turns (texts in turn, or objects with role and content), [system].
    """

    kind: Literal["dialogue"] = "dialogue"
    first: Literal["user", "assistant"] = Field("user", description="Who speaks first where turns have no roles.")
    learn: Literal["assistant", "all"] = Field(
        "assistant", description="Whose turns are predicted: the assistant's alone, or everyone's."
    )
    separator: str | None = Field(
        None, min_length=1, description="What stands between the turns where `turns` is one text."
    )


Task = Classification | Regression | Tagging | SpanAnswering | TextToText | Dialogue
TASKS = (Classification, Regression, Tagging, SpanAnswering, TextToText, Dialogue)


def tag_names(objective: Tagging) -> tuple[str, ...]:
    """Returns the tags that the model learns, in the order of their ids: O, B-PER, I-PER, …"""
    prefixes = "BI" if objective.learned_scheme == "iob2" else "BIES"
    return ("O", *(f"{prefix}-{kind}" for kind in objective.types for prefix in prefixes))


def num_outputs(objective: BaseModel) -> int | None:
    """How many outputs of the sequence or tokens head a task needs; None for all else."""
    match objective:
        case Classification():
            return len(objective.labels)
        case Regression():
            return 1
        case Tagging():
            return len(tag_names(objective))
    return None
