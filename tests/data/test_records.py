"""Records are read as written, whatever is in them; what is wrong is told in one sentence with its place."""

import bz2
import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data import sources
from data.config import HuggingFace
from data.document import DataError, Skipped
from data.records import read_records
from data.task_config import Records

ROLES = {"text": True, "label": True, "second_text": False}
HOSTILE = ["[SEP] </s> <pad>", "\u2028\u2029\x85\x0b", "שלום \u200f", "😀\u200d", "a\x00b", "\ufeff", "x" * 2**20]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, roles=ROLES, skipped=None, **options):
    return [record.fields for record in read_records(Records(path=str(path), **options), roles, skipped or Skipped())]


def error_of(path, roles=ROLES, **options):
    with pytest.raises(DataError) as caught:
        read(path, roles, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Formats

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rows_of_text = st.lists(st.fixed_dictionaries({"text": any_text, "label": any_text}), min_size=1, max_size=5)
same_file = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@same_file
@given(rows_of_text)
def test_json_lines_hold_any_text(tmp_path, rows):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read(write(tmp_path / "a.jsonl", lines)) == rows
    assert read(write(tmp_path / "a.json", json.dumps(rows))) == rows


@same_file
@given(rows_of_text)
def test_quoted_tables_hold_any_text(tmp_path, rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "label"], lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    assert read(write(tmp_path / "a.csv", out.getvalue())) == rows
    tabs = out.getvalue().replace('","', '"\t"') if not any('","' in row["text"] for row in rows) else None
    if tabs is not None and not any('","' in value for row in rows for value in row.values()):
        assert read(write(tmp_path / "a.tsv", tabs), quoted=True) == rows


@same_file
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))] * 2), min_size=1
    )
)
def test_a_plain_table_holds_all_but_tabs_and_ends_of_lines(tmp_path, rows):
    path = write(tmp_path / "a.tsv", "text\tlabel\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in rows))
    assert read(path) == [{"text": text, "label": label} for text, label in rows]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_survive_every_format(tmp_path, text):
    expected = [{"text": text, "label": "1"}]
    record = {"text": text, "label": 1}
    [fields] = read(write(tmp_path / "a.jsonl", json.dumps(record)))
    assert fields == record
    assert read(write(tmp_path / "a.tsv", f"text\tlabel\n{text}\t1\n")) == expected
    assert read(write(tmp_path / "a.csv", f'text,label\n"{text}",1\n')) == expected
    assert read(write(tmp_path / "a.txt", f"1 {text}\n"), pattern="(?P<label>.) (?P<text>.*)") == expected


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), ("", bytes)])
def test_compressed_files_with_a_byte_order_mark(tmp_path, ending, compress):
    path = write(tmp_path / f"a.tsv{ending}", compress(b"\xef\xbb\xbftext\tlabel\r\na\t0\r\n\r\nb\t1"))
    assert read(path) == [{"text": "a", "label": "0"}, {"text": "b", "label": "1"}]


def test_lines_beside_each_other(tmp_path):
    write(tmp_path / "labels", "0\n1\n")
    path = write(tmp_path / "texts.txt", "a\n\n")
    options = {"format": "lines", "beside": {"label": "labels"}}
    assert read(path, **options) == [{"text": "a", "label": "0"}, {"text": "", "label": "1"}]
    write(tmp_path / "labels", "0\n1\n2\n")
    assert error_of(path, **options) == (
        f"{path} has 2 lines, {tmp_path}/labels has 3 lines; files beside each other must have as many"
    )
    missing = {"format": "lines", "beside": {"label": "label"}}
    assert error_of(path, **missing) == f"{tmp_path}/label: no such file; did you mean {tmp_path}/labels?"


def test_files_beside_others_are_no_texts_and_belong_to_the_fingerprint(tmp_path):
    for folder, text in (("a", "x"), ("b", "y")):
        (tmp_path / "d" / folder).mkdir(parents=True)
        write(tmp_path / "d" / folder / "text.txt", f"{text}\n")
        write(tmp_path / "d" / folder / "label.txt", "1\n")
    expected = [{"text": "x", "label": "1"}, {"text": "y", "label": "1"}]
    for path in (tmp_path / "d", tmp_path / "d" / "*" / "*.txt"):
        assert read(path, beside={"label": "label.txt"}) == expected
    source = Records(path=str(tmp_path / "d"), beside={"label": "label.txt"})
    keys = [sources.fingerprint(source, tmp_path / "cache")]
    for folder in "ab":
        write(tmp_path / "d" / folder / "label.txt", "0\n")
        keys.append(sources.fingerprint(source, tmp_path / "cache"))
    assert len(set(keys)) == 3


def test_words_in_lines(tmp_path):
    lines = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n \n\u3000 X O\n-DOCSTART- -X- O\n\n\nBonn NNP B-LOC"
    path = write(tmp_path / "a.conll", lines)
    roles = {"tokens": True, "tags": True}
    assert read(path, roles, format="conll") == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["\u3000"], "tags": ["O"]},
        {"tokens": ["Bonn"], "tags": ["B-LOC"]},
    ]
    named = read(path, roles, format="conll", columns=("tokens", "tags", "rest"))
    assert named[0]["tags"] == ["NNP", "VBZ"]
    write(path, "a B\n\nb\n")
    assert (
        error_of(path, roles, format="conll")
        == f"{path}:3: the field tags needs the column 'tags'; the columns are: 'file', 'tokens'"
    )
    write(path, "a B\nb\n")
    assert error_of(path, roles, format="conll").startswith(f"{path}:2: a word of this sentence has other columns")


def test_matches_folders_and_questions(tmp_path):
    path = write(tmp_path / "a.xml", "<d>\n<l>1</l><t>a\nb</t></d>\n<d><l>2</l><t>c</t></d>")
    pattern = "<l>(?P<label>.)</l><t>(?P<text>[^<]*)</t>"
    source = Records(path=str(path), format="matches", pattern=pattern)
    found = list(read_records(source, ROLES, Skipped()))
    assert [(r.fields["text"], r.fields["label"], r.origin) for r in found] == [
        ("a\nb", "1", f"{path}:2"),
        ("c", "2", f"{path}:4"),
    ]
    for label in ("neg", "pos"):
        (tmp_path / "reviews" / label).mkdir(parents=True)
        write(tmp_path / "reviews" / label / "1.txt", f"a {label} one\n")
    assert read(tmp_path / "reviews", format="folders") == [
        {"text": "a neg one\n", "label": "neg"},
        {"text": "a pos one\n", "label": "pos"},
    ]
    question = {"question": "?", "id": "q", "answers": [{"text": "b", "answer_start": 2}]}
    squad = {"data": [{"title": "T", "paragraphs": [{"context": "a b", "qas": [question]}]}]}
    roles = dict.fromkeys(("context", "question", "answers", "id"), True)
    path = write(tmp_path / "squad.json", json.dumps(squad))
    assert read(path, roles, format="squad") == [{**question, "context": "a b"}]
    for content, message in [
        ('{"data": [{}]}', ": is not a SQuAD file: after 0 questions it lacks 'paragraphs'"),
        ('{"data": [1]}', ": is not a SQuAD file: after 0 questions it lacks an object or a list where SQuAD has one"),
        ("[]", ": expected a JSON object, found an array"),
        (json.dumps(squad).replace('"id"', '"no"'), "[0]: the field id needs the column 'id'; the columns are: "),
    ]:
        assert error_of(write(path, content), roles, format="squad").startswith(f"{path}{message}")


def test_persona_chat(tmp_path):
    lines = ["1 your persona: i ski.", "2 partner's persona: i sit.", "3 your persona: i sing.", "4 hi\tho\t\ta|b",
             "5 what ?\tthat", "", "1 no answer", "2 a\tb", "1 hey\tyou"]  # fmt: skip
    path = write(tmp_path / "chat.txt", "\r\n".join(lines))
    options = {"roles": {"turns": True, "system": False}, "format": "persona_chat"}
    assert error_of(path, **options) == (
        f"{path}:7: expected a number, a message, a tab and its answer, as PersonaChat has them"
    )
    skipped = Skipped()
    assert read(path, skipped=skipped, on_error="skip", **options) == [
        {"turns": ["hi", "ho", "what ?", "that"], "system": "i ski. i sing."},
        {"turns": ["hey", "you"], "system": ""},
    ]
    assert skipped.count == 1


# Fields


def test_fields_are_columns_templates_paths_and_lists(tmp_path):
    record = {"title": "T", "n": 3, "answers": {"text": ["a", "b"]}, "a.b": "dot", "none": None}
    path = write(tmp_path / "a.jsonl", json.dumps(record))
    fields = {
        "one": "{title} {n}",
        "two": "answers.text",
        "three": ("title", "none", "n"),
        "four": "a.b",
        "five": "file",
        "six": "{none}{answers.text}",
    }
    [found] = read(path, dict.fromkeys(fields, True), fields=fields)
    assert found == {
        "one": "T 3", "two": ["a", "b"], "three": ["T", 3], "four": "dot", "five": "a.jsonl", "six": "a b",
    }  # fmt: skip
    assert error_of(path, {"text": True}, fields={"text": "{answers}"}) == (
        f"{path}:1: the field text: the column 'answers' must be a text, found an object"
    )


def test_replacements_go_one_after_the_other_through_all_texts(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": ["a1", {"b": "c2"}], "label": 1}')
    [found] = read(path, replace={"text": {r"(\w)\d": r"\1!", "c!": "d"}})
    assert found == {"text": ["a!", {"b": "d"}], "label": 1}


def test_replacements_read_numbers_as_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": [0, {"at": 1}], "label": 1}\n{"text": "", "label": true}')
    replace = {"label": {"^1$": "spam", "^true$": "yes"}, "text": {"0": "O"}}
    assert read(path, replace=replace) == [{"text": ["O", {"at": 1}], "label": "spam"}, {"text": "", "label": "yes"}]


def test_parts_split_equal_records_to_one_side(tmp_path):
    rows = [f"text {i % 500}\t{i % 2}" for i in range(2000)]
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "\n".join(rows))
    train, test = (read(path, part=part) for part in [(0, 0.8), (0.8, 1)])
    texts = [{record["text"] for record in part} for part in (train, test)]
    assert len(train) + len(test) == 2000 and not texts[0] & texts[1]
    assert 330 < len(texts[0]) < 440
    assert len(read(path, drop_repeats=True)) == 500
    write(path, "id\ttext\tlabel\n" + "\n".join(f"{i}\t{row}" for i, row in enumerate(rows)))
    with_id = {**ROLES, "id": False}
    assert len(read(path, with_id, drop_repeats=True)) == 500
    assert [{**record, "id": None} for record in read(path, with_id, part=(0, 0.8))] == [
        {**record, "id": None} for record in train
    ]
    assert read(path, drop_repeats=True, max_records=3) == read(path)[:3]


# Mistakes


def test_a_missing_column_is_told_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.tsv", "sentence\tlabel\na\t1\n")
    assert (
        error_of(path)
        == f"{path}:2: the field text needs the column 'text'; the columns are: 'file', 'sentence', 'label'"
    )
    message = error_of(path, fields={"text": "sentense"})
    assert message.endswith("'label'; did you mean 'sentence'?")
    assert error_of(path, fields={"txt": "sentence"}) == (
        f"{path}: fields names 'txt'; the task's fields are text, label, second_text"
    )


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.tsv", "text\tlabel\na\n", {}, ":2: has 1 columns, expected 2: text, label"),
        ("a.tsv", "text\ttext\na\tb\n", {}, ": two columns are called 'text'; name them all by columns"),
        ("a.csv", 'text,label\n"a" b,1\n', {}, ":2: is not a valid quoted record: ',' expected after '\"'"),
        ("a.jsonl", '{"text": 1}\n{', {"fields": {"label": "text"}}, ":2: is not valid JSON: "),
        ("a.jsonl", "[1]", {}, ":1: expected a JSON object, found an array"),
        ("a.jsonl", "[" * 100_000, {}, ":1: JSON is nested too deeply"),
        ("a.json", '{"a": 1}', {}, ": expected a JSON array of objects, found an object"),
        (
            "a.json",
            "{}\n{}",
            {},
            ": is not valid JSON: Extra data: line 2 column 1 (char 3); objects one a line are the ",
        ),
        ("a.tsv", b"text\tlabel\nok\t1\n\xff\t1\n", {}, ":3: the text is not valid Unicode: byte 0xff at character 1"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', {}, ":1: the text is not valid Unicode: half a character"),
        ("a.json", '[{"text": "a", "label": 0}, 1]', {}, "[1]: expected a JSON object, found a number"),
        ("a.json", '[{"text": "a"}]', {}, "[0]: the field label needs the column 'label'"),
        ("a.jsonl", "{}", {"columns": ("text",)}, ": columns is for the formats csv, tsv, conll, not for jsonl"),
        ("a.jsonl", "{}", {"quoted": False}, ": quoted is for the formats csv, tsv, not for jsonl"),
        ("a.jsonl", "{}", {"pattern": "(?P<text>.)"}, ": pattern is for the formats lines, matches, not for jsonl"),
        ("a.tsv", "text\n", {"beside": {"label": "b"}}, ": beside is for the formats lines, not for tsv"),
        ("a.txt", b"\x1b$\n", {"encoding": "iso2022_jp"}, ": is not text in iso2022_jp: "),
        ("a.txt", "a\n", {"pattern": "(?P<text>b)"}, ":1: the line does not match the pattern '(?P<text>b)'"),
        ("a.bin", "a\n", {}, ": its name does not say what is in it; give format, or a name in .jsonl"),
        ("a.tsv", "", {}, ": is empty"),
        ("a.csv", "text,label\n".encode("utf-16"), {}, ": is UTF-16 or UTF-32 text; convert it to UTF-8"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, name, content, options, message):
    path = write(tmp_path / name, content)
    assert error_of(path, **options).startswith(f"{path}{message}")


def test_bad_records_can_be_skipped_and_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "label": 0}\n{\n{"text": "\xff", "label": 0}\n{"text": "b"}\n')
    skipped = Skipped()
    assert read(path, skipped=skipped, on_error="skip") == [{"text": "a", "label": 0}]
    assert skipped.count == 3 and skipped.messages[0].startswith(f"{path}:2: is not valid JSON")


def test_an_empty_file_of_a_folder_by_label_is_a_bad_record(tmp_path):
    (tmp_path / "d" / "pos").mkdir(parents=True)
    write(tmp_path / "d" / "pos" / "1.txt", "good")
    empty = write(tmp_path / "d" / "pos" / "2.txt", "")
    assert error_of(tmp_path / "d", format="folders") == f"{empty}: is empty"
    skipped = Skipped()
    found = read(tmp_path / "d", skipped=skipped, format="folders", on_error="skip")
    assert found == [{"text": "good", "label": "pos"}] and skipped.messages == [f"{empty}: is empty"]


def test_other_encodings(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\n中é\t1\n".encode("gb18030"))
    assert read(path, encoding="gb18030") == [{"text": "中é", "label": "1"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": (0.5, 0.5)}, "part must satisfy"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"pattern": "a"}, "no named group"),
        ({"replace": {"text": {"[": ""}}}, "is not a regular expression"),
        ({"replace": {"text": {"(a)": r"\2"}}}, "cannot replace matches of '\\(a\\)': invalid group reference 2"),
        ({"replace": {"text": {"a": r"\g<b>"}}}, "cannot replace matches of 'a': unknown group name 'b'"),
        ({"encoding": "utf-9"}, "is unknown"),
        *[({"encoding": name}, "is the byte 0x0a") for name in ("hex", "rot13", "idna", "utf-16-le", "cp037")],
        ({"pattern": "(?P<text>a)", "beside": {"b": "b.txt"}}, "pattern and beside exclude each other"),
        ({"columns": ("a", "b", "a")}, "columns names 'a' twice"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Records(path="a", **options)
    if "replace" in options:
        with pytest.raises(ValidationError, match=message):
            HuggingFace(path="a", **options)


def test_a_missing_file_is_told_with_the_nearest(tmp_path):
    write(tmp_path / "train.tsv", "a")
    assert error_of(tmp_path / "trian.tsv").endswith(f"no such file or folder; did you mean {tmp_path}/train.tsv?")
    assert error_of(tmp_path / "*.csv") == f"{tmp_path}/*.csv: there is no file with records here"


def test_a_hugging_face_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"sentence": ["a", "b"], "label": [0, 1]}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk(str(tmp_path / "d"))
    source = HuggingFace(path=str(tmp_path / "d"), fields={"text": "sentence"})
    found = list(read_records(source, ROLES, Skipped()))
    assert [record.fields for record in found] == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert found[1].origin == f"{tmp_path}/d[1]"
    spam = source.model_copy(update={"replace": {"label": {"1": "spam"}}})
    assert [record.fields["label"] for record in read_records(spam, ROLES, Skipped())] == ["0", "spam"]
    with pytest.raises(DataError, match="text_field is for language models; for a task, fields name the columns"):
        list(read_records(source.model_copy(update={"text_field": "sentence"}), ROLES, Skipped()))
    with pytest.raises(DataError, match="fields and replace are for tasks; a language model reads text_field alone"):
        list(sources.read(source, Skipped()))


def test_a_language_model_reads_the_texts_of_records(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": ["a.", "b."]}\n{"body": "c"}')
    source = Records(path=str(path), fields={"text": "body"})
    assert list(sources.read(source, Skipped())) == [("a. b.", f"{path}:1"), ("c", f"{path}:2")]
    before = sources.fingerprint(source, tmp_path / "cache")
    write(path, '{"body": "c"}')
    assert sources.fingerprint(source, tmp_path / "cache") != before
    write(path, '{"body": {}}\n{"body": "c"}')
    with pytest.raises(DataError) as caught:
        list(sources.read(source, Skipped()))
    assert str(caught.value) == f"{path}:1: text must be a text, found an object"
    skipped = Skipped()
    skipping = source.model_copy(update={"on_error": "skip"})
    assert list(sources.read(skipping, skipped)) == [("c", f"{path}:2")] and skipped.count == 1
