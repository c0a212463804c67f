"""Checked records → the tokens of their examples, not yet padded.

An example is a dict of arrays of one dim, by task:

    classification   inputs [sentence_ids] target: int [1]
    regression       inputs [sentence_ids] target: float32 [1]
    tagging          inputs targets words: number of the word that a token begins, -1 for all other tokens
    span_answering   inputs sentence_ids targets [2] starts ends first
                     starts, ends: characters of the context that a token stands for, -1 outside the context
                     first [1]: number of the window's first token among those of the context
    text_to_text     sources targets, both with </s> at the end
    dialogue         tokens learned; one token more than the rows that are made of them

An encoder's inputs are what the official loader of an imported tokenizer makes, such as <s> A </s></s> B </s> for
RoBERTa, and otherwise [bos] A [eos] or [bos] A [eos] B [eos]; of text_to_text, as in pretraining, A </s>.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data import dialogue
from data.document import DataError
from data.objectives import Stack
from data.pretrained_tokenizer import PretrainedTokenizer
from data.records import Record
from data.span_windows import answer_tokens, context_tokens, target_in_window, windows
from data.tagged_words import encode_words
from data.task_config import (
    Classification,
    Dialogue,
    Regression,
    SpanAnswering,
    Tagging,
    Task,
    TextToText,
    tag_names,
)
from data.tokenizer import Tokenizer, without_added

Row = dict[str, np.ndarray]

_AT_ONCE = 4096  # records whose texts are tokenized in one call


@dataclass(frozen=True)
class TaskEncoder:
    """Makes the examples of a task's records.

    Attributes:
      tokenizer: has the special tokens that the task needs, see `objective_tokenizer`.
      length: most tokens of a row, special ones included.
      target_length: most tokens of a target with its </s>; None is `length`. In a decoder's row, which source and
        target share, the target comes first where this is given, else the longer one is cut.
    """

    objective: Task
    tokenizer: Tokenizer
    stack: Stack
    length: int
    target_length: int | None = None

    def rows(self, records: Iterable[Record], cut: Counter[str]) -> Iterator[list[Row]]:
        """Yields the examples of each record, one or several; `cut` counts the texts that were cut, by field."""
        make = self._makers[type(self.objective)]
        pending: list[Record] = []
        for record in records:
            pending.append(record)
            if len(pending) == _AT_ONCE:
                yield from make(pending, cut)
                pending = []
        if pending:
            yield from make(pending, cut)

    @cached_property
    def _makers(self) -> dict[type, Callable[[list[Record], Counter[str]], Iterator[list[Row]]]]:
        return {
            Classification: self._text_pairs,
            Regression: self._text_pairs,
            Tagging: self._tagged,
            SpanAnswering: self._questions,
            TextToText: self._text_to_text,
            Dialogue: self._dialogues,
        }

    @cached_property
    def template(self) -> "Template":
        tokenizer = self.tokenizer
        if (official := Template.official(tokenizer)) is not None:
            return official
        bos, eos = (tokenizer.bos_id,), (tokenizer.eos_id,)
        return Template((), eos, eos) if isinstance(self.objective, TextToText) else Template(bos, eos, eos)

    # Texts and pairs of texts

    def _text_pairs(self, records: list[Record], cut: Counter[str]) -> Iterator[list[Row]]:
        firsts = self.tokenizer.encode_batch([record.fields["text"] for record in records])
        has_second = ["second_text" in record.fields for record in records]
        seconds = iter(
            self.tokenizer.encode_batch(
                [record.fields["second_text"] for record in records if "second_text" in record.fields]
            )
        )
        for record, first, is_pair in zip(records, firsts, has_second, strict=True):
            label = record.fields["label"]
            if isinstance(self.objective, Classification):
                target = np.array([self.objective.labels.index(label)], np.int32)
            else:
                target = np.array([label], np.float32)
            if not is_pair:
                room = self._room(self.length - len(self.template.around([])))
                cut["text"] += len(first) > room
                yield [{"inputs": self.template.around(first[:room]), "target": target}]
                continue
            second = next(seconds)
            room = self._room(self.length - len(self.template.around([], [])), 2)
            kept, kept_second = _longest_first(len(first), len(second), room)
            cut["text"] += kept < len(first)
            cut["second_text"] += kept_second < len(second)
            yield [{**self.template.pair(first[:kept], second[:kept_second]), "target": target}]

    def _room(self, room: int, texts: int = 1) -> int:
        if room < texts:
            raise DataError(f"data.length {self.length} has no room for a single token of each text")
        return room

    # Words

    def _tagged(self, records: list[Record], cut: Counter[str]) -> Iterator[list[Row]]:
        ids = {name: i for i, name in enumerate(tag_names(self.objective))}
        around = self.template.around([])
        before, room = len(self.template.before), self._room(self.length - len(around))
        encoded = encode_words(self.tokenizer, [record.fields["tokens"] for record in records])
        for record, words in zip(records, encoded, strict=True):
            tags = np.array([ids[tag] for tag in record.fields["tags"]], np.int32)
            sizes = np.array([min(len(word), room) for word in words])
            cut["tokens"] += any(len(word) > room for word in words)
            ends = np.append(0, np.cumsum(sizes))
            rows, first = [], 0
            while first < len(words):
                end = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
                numbers = np.arange(first, end)
                inputs = self.template.around(np.concatenate([words[i][:room] for i in numbers]))
                starts = before + ends[first:end] - ends[first]
                targets, word_of = np.zeros(len(inputs), np.int32), np.full(len(inputs), -1, np.int32)
                targets[starts], word_of[starts] = tags[numbers], numbers
                rows.append({"inputs": inputs, "targets": targets, "words": word_of})
                first = end
            yield rows

    # Questions

    def _questions(self, records: list[Record], cut: Counter[str]) -> Iterator[list[Row]]:
        questions = self.tokenizer.encode_batch([record.fields["question"] for record in records])
        tokens, starts, ends, context = np.empty(0, np.int32), np.empty(0), np.empty(0), None
        for record, question in zip(records, questions, strict=True):
            if record.fields["context"] != context:  # questions about a context follow each other
                context = record.fields["context"]
                tokens, offsets = self.tokenizer.encode_with_offsets(context)
                starts, ends = context_tokens(context, offsets)
            most = self.objective.max_question_length
            cut["question"] += len(question) > most
            question = question[:most]
            answer = None
            if answers := record.fields["answers"]:
                first = answers[0]["answer_start"]
                answer = answer_tokens(starts, ends, first, first + len(answers[0]["text"]))
            yield self._windows(question, tokens, starts, ends, answer)

    def _windows(
        self,
        question: np.ndarray,
        tokens: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        answer: tuple[int, int] | None,
    ) -> list[Row]:
        rows, room = [], self._room(self.length - len(self.template.around(question, [])))
        offset = len(self.template.before) + len(question) + len(self.template.between)
        for first, end in windows(len(tokens), room, self.objective):
            row = self.template.pair(question, tokens[first:end])
            for name, values in (("starts", starts), ("ends", ends)):
                row[name] = np.full(len(row["inputs"]), -1, np.int32)
                row[name][offset : offset + end - first] = values[first:end]
            row["targets"] = np.array(target_in_window(answer, first, end, offset), np.int32)
            row["first"] = np.array([first], np.int32)
            rows.append(row)
        return rows

    # Rows of an input and a target

    def _text_to_text(self, records: list[Record], cut: Counter[str]) -> Iterator[list[Row]]:
        words, prefix = self.objective.words, self.objective.prefix
        sources = self.tokenizer.encode_batch([prefix + record.fields["source"] for record in records])
        targets = [words.get(record.fields["target"][0], record.fields["target"][0]) for record in records]
        shared = self.stack == "decoder"
        most = self.target_length or self.length
        before = 0 if shared else len(self.template.before)
        target_room = self._room(most - 1 - before)
        around = [self.tokenizer.eos_id] if shared else self.template.around([])
        source_room = self._room(self.length - len(around) - shared, 1 + shared)
        if shared and self.target_length is not None and target_room >= source_room:
            raise DataError(
                f"data.target_length {most} leaves a decoder's row of data.length {self.length} no room for a source; "
                f"it must be at most {self.length - 2}"
            )
        for source, target in zip(sources, target_tokenizer(self.tokenizer).encode_batch(targets), strict=True):
            kept, kept_target = min(len(source), source_room), min(len(target), target_room)
            if shared and self.target_length is None:
                kept, kept_target = _longest_first(len(source), len(target), source_room)
            elif shared:
                kept = min(kept, source_room - kept_target)
            cut["source"] += kept < len(source)
            cut["target"] += kept_target < len(target)
            read = np.append(source[:kept], around) if shared else self.template.around(source[:kept])
            written = np.append(target[:kept_target], self.tokenizer.eos_id)
            yield [{"sources": read.astype(np.int32), "targets": written.astype(np.int32)}]

    def _dialogues(self, records: list[Record], cut: Counter[str]) -> Iterator[list[Row]]:
        for record in records:
            conversation = dialogue.read_turns(record, self.objective)
            encoded = dialogue.encode(conversation, self.tokenizer, self.objective, self.length, cut)
            yield [{"tokens": tokens.astype(np.int32), "learned": learned} for tokens, learned in encoded]


def target_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer of a text to be written, which only for Marian is another one."""
    base = without_added(tokenizer)
    return base.for_target if isinstance(base, PretrainedTokenizer) and base.family == "marian" else tokenizer


@dataclass(frozen=True)
class Template:
    """What stands before, between and after the texts that an encoder reads, in ids."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]

    @classmethod
    def official(cls, tokenizer: Tokenizer) -> "Template | None":
        """Returns the template of an imported tokenizer, or None where it has none."""
        base = without_added(tokenizer)
        if not isinstance(base, PretrainedTokenizer):
            return None
        text = base.encode("a").tolist()
        single, pair = (base.with_template("a", second)[0].tolist() for second in (None, "a"))
        places = [i for i in range(len(pair)) if pair[i : i + len(text)] == text]
        if len(single) == len(text) or len(places) != 2:
            return None
        first, second = places
        after = single[single.index(text[0]) + len(text) :]
        return cls(tuple(pair[:first]), tuple(after), tuple(pair[first + len(text) : second]))

    def around(self, first: Sequence[int], second: Sequence[int] | None = None) -> np.ndarray:
        """Returns the ids of a text or a pair of texts: int32 [length]."""
        middle = () if second is None else (*self.between, *second)
        return np.array([*self.before, *first, *middle, *self.after], np.int32)

    def pair(self, first: Sequence[int], second: Sequence[int]) -> Row:
        """Returns inputs and sentence_ids, 0 for the first text and what is around it, 1 for the second."""
        inputs = self.around(first, second)
        # BERT's type ids: the end of the first text belongs to it, even where it is doubled, as RoBERTa's is.
        start = len(self.before) + len(first) + len(self.between)
        return {"inputs": inputs, "sentence_ids": (np.arange(len(inputs)) >= start).astype(np.int32)}


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of each text are kept if the longer one loses its last token until both fit."""
    excess = max(0, first + second - room)
    level = max(0, min(excess, abs(first - second)))
    first, second = (first - level, second) if first >= second else (first, second - level)
    excess -= level
    return first - (excess + 1) // 2, second - excess // 2
