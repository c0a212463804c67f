"""From a record to the tokens of its examples and back, and every mistake in one sentence."""

import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data import tokenizer as tokenizers
from data.config import ByteBPE, Characters, Cleaning, DataConfig, Files, SentencePiece, WordPiece
from data.document import DataError
from data.examples import Examples, make_examples, overlap, read_examples
from data.objectives import objective_tokenizer
from data.records import Record
from data.tagged_words import encode_words
from data.task_config import (
    Classification,
    Dialogue,
    Records,
    Regression,
    SpanAnswering,
    Tagging,
    TextToText,
    num_outputs,
    tag_names,
)
from data.task_encoding import TaskEncoder, Template
from data.tasks import checked
from data.tokenizer import ByteTokenizer

BINARY = Classification(labels=("no", "yes"))
NER = Tagging(types=("PER", "ORG"), scheme="iob1")
QA = SpanAnswering(stride=7, max_question_length=8)
TEXT = "The cat, they said, went to Zürich in 2018; nobody knows why 北京 is so far. " * 8
SPECIAL = "[SEP] </s> <pad> [CLS] <s> <|end|> <mask>"


@pytest.fixture(scope="module")
def all_tokenizers():
    trained = {
        "sentencepiece": SentencePiece(vocab_size=320),
        "wordpiece": WordPiece(vocab_size=300),
        "byte_bpe": ByteBPE(vocab_size=300),
        "characters": Characters(),
    }
    made = {name: tokenizers.train(config, iter([TEXT])) for name, config in trained.items()}
    return {**made, "bytes": ByteTokenizer()}


KINDS = ["sentencepiece", "wordpiece", "byte_bpe", "characters", "bytes"]


@pytest.fixture(params=KINDS)
def tokenizer(request, all_tokenizers):
    return all_tokenizers[request.param]


def record(**fields):
    return Record(fields, "file:7")


def examples(task, records, tokenizer, stack="encoder", length=64, **options):
    config = DataConfig(length=length, **options)
    records = [checked(each, task, Cleaning()) for each in records]
    return make_examples(config, "train", records, task, tokenizer, stack=stack)


def rows(made: Examples):
    return [made.row(i) for i in range(len(made))]


# Tokens and characters

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    text=unicode_text | st.sampled_from([SPECIAL, "שלום \u200f\u202e", "😀\u200d👩‍🚀", "▁a ▁", "e\u0301ﬁ½ ", "\n \n\t"])
)
def test_offsets_are_those_of_the_tokens(all_tokenizers, text):
    for tokenizer in all_tokenizers.values():
        ids, offsets = tokenizer.encode_with_offsets(text)
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        starts, ends = offsets.T
        assert (starts <= ends).all() and (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
        assert not len(ids) or (starts.min() >= 0 and ends.max() <= len(text))
        if tokenizer.kind != "pretrained":  # these lose nothing
            assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))


@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.text(min_size=1, max_size=6) | st.sampled_from(["\x00", "北", "▁", "2", "[SEP]"]), min_size=1))
def test_every_word_has_a_token(all_tokenizers, words):
    for tokenizer in all_tokenizers.values():
        [encoded] = encode_words(tokenizer, [words])
        assert len(encoded) == len(words) and all(len(ids) for ids in encoded)
        never = tokenizer.special_ids - {tokenizer.unk_id}
        assert never.isdisjoint(np.concatenate(encoded).tolist())


def test_words_are_encoded_as_they_are_in_their_text(tokenizer):
    words = "The cat went to Zürich in 2018".split()
    [encoded] = encode_words(tokenizer, [words])
    np.testing.assert_array_equal(np.concatenate(encoded), tokenizer.encode(" ".join(words)))
    [encoded] = encode_words(tokenizer, [list("北京2018")])
    assert tokenizer.decode(np.concatenate(encoded)).replace(" ", "") == tokenizer.decode(
        tokenizer.encode("北京2018")
    ).replace(" ", "")
    if tokenizer.kind == "bytes":
        assert sum(map(len, encoded)) == len("北京2018".encode())


def test_texts_that_spell_special_tokens_are_ordinary_text(tokenizer):
    [row] = rows(examples(BINARY, [record(text=SPECIAL, label="no")], tokenizer, length=128))
    inside = row["inputs"][1:-1].tolist()
    assert (tokenizer.special_ids - {tokenizer.unk_id}).isdisjoint(inside)
    assert (row["inputs"][0], row["inputs"][-1]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_a_pair_has_the_official_template(all_tokenizers, tmp_path):
    byte, bert = all_tokenizers["bytes"], all_tokenizers["wordpiece"]
    pair = record(text="ab", second_text="c", label="yes")
    for tokenizer in (byte, bert):
        [row] = rows(examples(BINARY, [pair], tokenizer))
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        a, b = tokenizer.encode("ab").tolist(), tokenizer.encode("c").tolist()
        assert row["inputs"].tolist() == [bos, *a, eos, *b, eos]
        assert row["sentence_ids"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    inputs, type_ids = bert.with_template("ab", "c")
    assert inputs.tolist() == row["inputs"].tolist() and type_ids.tolist() == row["sentence_ids"].tolist()
    double = Template((0,), (2,), (2, 2)).pair([7, 8], [9])  # RoBERTa's
    assert double["inputs"].tolist() == [0, 7, 8, 2, 2, 9, 2]


def test_long_pairs_lose_the_end_of_the_longer_text():
    made = examples(BINARY, [record(text="a" * 50, second_text="b" * 5, label="no")], ByteTokenizer(), length=20)
    text = bytes(i - 4 for i in made.row(0)["inputs"] if i >= 4).decode()
    assert text == "a" * 12 + "b" * 5 and made.truncated == 1
    made = examples(BINARY, [record(text="a" * 50, second_text="b" * 50, label="no")], ByteTokenizer(), length=20)
    assert len(made.row(0)["inputs"]) == 20
    assert bytes(i - 4 for i in made.row(0)["inputs"] if i >= 4).decode() == "a" * 8 + "b" * 9


# Tagging

TAGGED = record(
    tokens=["U", ".", "N", ".", "official", "Ekeus", "heads", "for", "Baghdad", "."] * 3,
    tags=(["I-ORG"] * 4 + ["O", "I-PER", "B-PER", "O", "I-ORG", "O"]) * 3,
)


@pytest.mark.parametrize("length", [5, 12, 64, 400])
@pytest.mark.parametrize("scheme", ["iob2", "iobes"])
def test_tags_come_back_from_the_tokens_of_their_words(tokenizer, length, scheme):
    task = NER.model_copy(update={"learned_scheme": scheme})
    made = examples(task, [TAGGED, TAGGED], tokenizer, length=length)
    names, tags = tag_names(task), [{}, {}]
    [tokens] = encode_words(tokenizer, [TAGGED.fields["tokens"]])
    for row, number in zip(rows(made), made.record_of, strict=True):
        assert len(row["inputs"]) <= length
        for place in np.flatnonzero(row["words"] >= 0):
            word = int(row["words"][place])
            assert word not in tags[number] and row["inputs"][place] == tokens[word][0]
            tags[number][word] = names[row["targets"][place]]
    words = TAGGED.fields["tokens"]
    for found in tags:
        assert [found[i] for i in range(len(words))] == made.records[0].fields["tags"]
    assert num_outputs(task) == len(names) == (5 if scheme == "iob2" else 9)


# Questions

CONTEXT = "  In 2018,  Zürich\u2028(北京) had  400,000 people.\nSo they said; 😀 nobody knows why\u00a0it is so far. "


def question(answer, start=None):
    start = CONTEXT.index(answer) if start is None else start
    return record(context=CONTEXT, question="how many people?", answers=[{"text": answer, "answer_start": start}])


@pytest.mark.parametrize(
    "answer", ["2018", "Zürich", "北京", "400,000", "400,000 people", "So they said", "😀", "far", "In"]
)
def test_windows_hold_every_token_and_the_answer(tokenizer, answer):
    made = examples(QA, [question(answer)], tokenizer, length=24)
    ids, offsets = tokenizer.encode_with_offsets(CONTEXT)
    shown, found = set(), []
    for row in rows(made):
        in_context = row["starts"] >= 0
        places = row["first"][0] + np.arange(in_context.sum())
        np.testing.assert_array_equal(row["inputs"][in_context], ids[places])
        assert (row["sentence_ids"][in_context] == 1).all()
        shown |= set(places.tolist())
        first, last = row["targets"]
        if last:
            assert in_context[first] and in_context[last]
            found.append(CONTEXT[row["starts"][first] : row["ends"][last]])
    assert shown == set(range(len(ids)))
    whole = examples(QA, [question(answer)], tokenizer, length=400).row(0)
    first, last = whole["targets"]
    text = CONTEXT[whole["starts"][first] : whole["ends"][last]]
    assert answer in text and text == text.strip()
    assert all(each == text for each in found)


@pytest.mark.parametrize("vocabulary", ["bert-base-uncased", "gpt2"])
def test_answers_of_squad_are_slices_of_their_context(shared_dataset, tmp_path, vocabulary):
    if vocabulary == "gpt2":
        tokenizer = tokenizers.load(shared_dataset("tokenizers/gpt2_bpe"))
    else:
        shutil.copy(shared_dataset("tokenizers/bert_wordpiece") / "bert-base-uncased-vocab.txt", tmp_path / "vocab.txt")
        tokenizer = tokenizers.load(tmp_path)
    path = shared_dataset("qa/squad_v1.1_subset") / "squad_dev_subset.json"
    config = DataConfig(train=Records(path=str(path), format="squad"), length=384, held_out_fraction=0)
    made = read_examples(config, "train", SpanAnswering(), tokenizer, stack="encoder")
    found = {}
    for row, number in zip(rows(made), made.record_of, strict=True):
        first, last = row["targets"]
        context = made.records[number].fields["context"]
        if last:
            found[int(number)] = context[row["starts"][first] : row["ends"][last]]
    assert len(found) == len(made.records) == 700
    answers = [each.fields["answers"][0]["text"] for each in made.records]
    assert all(answer in found[i] for i, answer in enumerate(answers))
    equal = sum(found[i].strip(" .,;:()\"'$%") == answer.strip(" .,;:()\"'$%") for i, answer in enumerate(answers))
    assert equal >= 0.98 * len(answers)


# Texts to texts


def test_a_decoders_row_holds_source_and_target():
    task = TextToText(prefix="say: ", words={"1": "good"})
    wanted = [record(source="a" * 60, target=["1", "2"]), record(source="b", target="c" * 60)]
    made = examples(task, wanted, ByteTokenizer(), stack="decoder", length=32)
    for row in rows(made):
        assert len(row["sources"]) + len(row["targets"]) == 32
        assert row["sources"][-1] == row["targets"][-1] == ByteTokenizer.eos_id
    assert ByteTokenizer().decode(made.row(0)["targets"]) == "good"
    assert ByteTokenizer().decode(made.row(1)["sources"]) == "say: b"
    made = examples(task, wanted, ByteTokenizer(), stack="decoder", length=32, target_length=4)
    assert [len(row["targets"]) for row in rows(made)] == [4, 4]
    made = examples(task, wanted, ByteTokenizer(), stack="decoder", length=32, target_length=30)
    assert [(len(row["sources"]), len(row["targets"])) for row in rows(made)] == [(27, 5), (2, 30)]
    for target_length in (31, 32, 64):
        with pytest.raises(DataError, match=f"data.target_length {target_length} leaves .* it must be at most 30"):
            examples(task, wanted, ByteTokenizer(), stack="decoder", length=32, target_length=target_length)
    with pytest.raises(DataError, match="data.length 3 has no room"):
        examples(task, wanted, ByteTokenizer(), stack="decoder", length=3)
    made = examples(task, wanted, ByteTokenizer(), stack="encoder_decoder", length=32, target_length=8)
    assert [len(row["sources"]) for row in rows(made)] == [32, 7]
    assert [len(row["targets"]) for row in rows(made)] == [5, 8] and made.truncated == 2


def test_dialogues_are_rows_of_conversations():
    task = Dialogue(separator="\t")
    tokenizer = objective_tokenizer(ByteTokenizer(), task)
    made = examples(task, [record(turns="hi\thello\tbye\tso long" * 4)], tokenizer, stack="decoder", length=40)
    assert len(made) > 1 and set(made.record_of) == {0} and made.lengths.max() <= 40
    assert all(row["learned"].any() for row in rows(made)) and made.truncated == 0
    made = examples(task, [record(turns="hi\t" + "hello" * 9)], tokenizer, stack="decoder", length=40)
    assert made.truncated == 1


# Mistakes


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        (BINARY, {"text": "a", "label": "yse"}, "the label 'yse' is none of 'no', 'yes'; did you mean 'yes'?"),
        (BINARY, {"text": " \u3000\n", "label": "yes"}, "text is empty"),
        (BINARY, {"text": None, "label": "yes"}, "text must be a text, found null"),
        (BINARY, {"text": "a", "second_text": "", "label": "yes"}, "second_text is empty"),
        (Regression(), {"text": "a", "label": "3,5"}, "the label '3,5' is no number from 0.0 to 5.0"),
        (Regression(), {"text": "a", "label": "nan"}, "the label 'nan' is no number from 0.0 to 5.0"),
        (Regression(), {"text": "a", "label": 5.1}, "the label '5.1' is no number from 0.0 to 5.0"),
        (NER, {"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens but 1 tags"),
        (NER, {"tokens": [], "tags": []}, "tokens must be a list of texts, and not empty"),
        (NER, {"tokens": ["a"], "tags": ["I-LOC"]}, "the tag 'I-LOC' is of none of the types 'PER', 'ORG'"),
        (NER, {"tokens": ["a"], "tags": ["S-PER"]}, "tag 0 is 'S-PER', but iob1 has O, I-TYPE, B-TYPE"),
        (QA, question("2018", 3).fields, "the answer '2018' is not at character 3 of its context; it is at 5"),
        (
            QA,
            question("2019", 5).fields,
            "the answer '2019' is not at character 5 of its context; it is nowhere in the context",
        ),
        (
            QA,
            {"context": "a", "question": "?", "answers": []},
            "there is no answer; set objective.may_have_no_answer if there need not be one",
        ),
        (QA, {"context": " ", "question": "?", "answers": []}, "context must be a text, and not empty"),
        (
            QA,
            {"context": "a", "question": "?", "answers": ["a"]},
            "an answer must be an object with a text that is not empty and answer_start",
        ),
        (TextToText(), {"source": "a", "target": []}, "target is an empty list"),
        (TextToText(), {"source": "a", "target": ["b", " "]}, "target is empty"),
        (Dialogue(), {"turns": ["a"]}, "the conversation has no turn of the assistant, so there is nothing to learn"),
        (Dialogue(), {"turns": "a"}, "turns is one text; objective.separator must say what stands between its turns"),
    ],
)
def test_a_record_that_is_wrong_is_told(task, fields, message):
    with pytest.raises(DataError) as caught:
        checked(record(**fields), task, Cleaning())
    assert str(caught.value) == f"file:7: {message}"


def test_cleaning_moves_no_labels():
    with pytest.raises(DataError, match="data.cleaning would move the text from under the labels of tagging"):
        checked(TAGGED, NER, Cleaning(html=True))
    made = checked(record(text="<b>a</b> ", label="no"), BINARY, Cleaning(html=True))
    assert made.fields["text"] == "a"


def test_rows_without_room_for_a_token_are_refused():
    for length, fields in ((2, {"text": "a"}), (4, {"text": "a", "second_text": "b"})):
        with pytest.raises(DataError, match=f"data.length {length} has no room for a single token of each text"):
            examples(BINARY, [record(**fields, label="no")], ByteTokenizer(), length=length)
    with pytest.raises(DataError, match="either all records have a second_text, or none"):
        pair = record(text="a", second_text="b", label="no")
        examples(BINARY, [pair, record(text="a", label="no")], ByteTokenizer())


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Tagging, {"types": ("PER", "")}, "types has an empty name"),
        (Tagging, {"types": ("PER", "LOC", "PER")}, "types names 'PER' twice"),
        (Classification, {"labels": ("a", "a")}, "labels names 'a' twice"),
    ],
)
def test_impossible_names_are_refused(task, options, message):
    with pytest.raises(ValidationError, match=message):
        task(**options)


# Splits


def test_equal_inputs_are_held_out_together_and_overlap_is_counted(tmp_path):
    lines = "".join(f"{'Text' if i % 2 else ' text'}  {i // 2}\t{'yes' if i % 3 else 'no'}\n" for i in range(600))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + lines)
    (tmp_path / "b.tsv").write_text("text\tlabel\nTEXT 7\tyes\nnew\tno\nＴext 9\tyes\n")
    source = Records(path=str(tmp_path / "a.tsv"))
    config = DataConfig(train=source, test=Records(path=str(tmp_path / "b.tsv")), held_out_fraction=0.2)
    made = {
        split: read_examples(config, split, BINARY, ByteTokenizer(), stack="encoder")
        for split in ("train", "validation", "test")
    }
    assert len(made["train"]) + len(made["validation"]) == 600
    assert 70 < len(made["validation"]) < 170
    assert overlap(made["train"], made["validation"]) == 0
    both = overlap(made["train"], made["test"]) + overlap(made["validation"], made["test"])
    assert both == 2
    assert made["train"].key != made["validation"].key


def test_the_key_is_that_of_the_content_and_not_of_the_place(tmp_path):
    keys = []
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\n{text}\tno\n")
        config = DataConfig(train=Records(path=str(tmp_path / f"{name}.tsv")), held_out_fraction=0)
        keys.append(read_examples(config, "train", BINARY, ByteTokenizer(), stack="encoder").key)
    assert keys[0] == keys[1] != keys[2]


def test_a_split_without_records_is_told(tmp_path):
    config = DataConfig(held_out_fraction=0)
    with pytest.raises(DataError, match="python_docs has no labelled records; the task classification needs sources"):
        read_examples(config, "train", BINARY, ByteTokenizer(), stack="encoder")
    with pytest.raises(DataError, match="files has no labelled records"):
        config = DataConfig(train=Files(path="a.csv", text_field="review"), held_out_fraction=0)
        read_examples(config, "train", BINARY, ByteTokenizer(), stack="encoder")
    with pytest.raises(DataError, match="data.test names no records"):
        read_examples(config, "test", BINARY, ByteTokenizer(), stack="encoder")
    (tmp_path / "a.tsv").write_text("text\tlabel\na\tmaybe\n")
    config = DataConfig(train=Records(path=str(tmp_path / "a.tsv"), on_error="skip"), held_out_fraction=0)
    with pytest.raises(
        DataError, match=r"no record for train \(0 read, 1 bad ones skipped, the first: .*a.tsv:2: the label"
    ):
        read_examples(config, "train", BINARY, ByteTokenizer(), stack="encoder")


def test_what_is_cut_and_skipped_is_reported(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "a" * 40 + "\tno\nb\tyes\nc\tmaybe\n")
    config = DataConfig(train=Records(path=str(tmp_path / "a.tsv"), on_error="skip"), held_out_fraction=0, length=16)
    lines = []
    read_examples(config, "train", BINARY, ByteTokenizer(), stack="encoder", report=lines.append)
    assert lines[0].startswith("train: 2 records; 1 bad records skipped, the first: ")
    assert lines[1] == "train: 1 of 2 text fields were cut to fit"


def test_rows_come_in_the_order_of_the_records(all_tokenizers):
    encoder = TaskEncoder(BINARY, all_tokenizers["sentencepiece"], "encoder", 64)
    wanted = [record(text=f"cat {i}", label="yes") for i in range(9)]
    one_by_one = [next(encoder.rows([each], Counter()))[0]["inputs"] for each in wanted]
    for alone, [together] in zip(one_by_one, encoder.rows(wanted, Counter()), strict=True):
        np.testing.assert_array_equal(alone, together["inputs"])
