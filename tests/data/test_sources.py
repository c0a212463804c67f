"""Every input ends in documents or in one DataError that names the place, never in another exception."""

import bz2
import gzip
import json
import lzma

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import python_docs, streams
from data.config import Files, HuggingFace, PythonDocs
from data.document import DataError, Skipped
from data.sources import fingerprint, read

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def texts(path, skipped=None, **options):
    source = Files(path=str(path), **options)
    return [document.text for document in read(source, skipped or Skipped())]


def error_of(path, **options):
    with pytest.raises(DataError) as caught:
        texts(path, **options)
    return str(caught.value)


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# What is read


def test_a_text_file_is_one_document_unchanged(tmp_path):
    content = "\tone\r\n\r\n two\u2028three\x85 \x00\n\n"
    assert texts(write(tmp_path / "a.txt", content)) == [content]


def test_only_newlines_end_lines(tmp_path):
    path = write(tmp_path / "a.txt", "a\u2028b\x0cc\x85d\r\n\nlast")
    assert texts(path, document="line") == ["a\u2028b\x0cc\x85d", "", "last"]


def test_paragraphs_end_at_blank_lines(tmp_path):
    path = write(tmp_path / "a.txt", "\n\na\nb\n \t\n\nc\r\n\r\nd")
    documents = list(read(Files(path=str(path), document="paragraph"), Skipped()))
    assert [document.text for document in documents] == ["a\nb", "c", "d"]
    assert [document.origin.removeprefix(str(path)) for document in documents] == [":3", ":7", ":9"]


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfhi")) == ["hi"]


def test_json_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\\nb", "n": NaN}\r\n\n{"n": 1, "text": "c"}')
    documents = list(read(Files(path=str(path)), Skipped()))
    assert documents == [("a\nb", f"{path}:1"), ("c", f"{path}:3")]


def test_csv_and_tsv(tmp_path):
    csv_path = write(tmp_path / "a.csv", 'id,body\n1,"two\nlines, ""quoted"""\n\n2,plain\n')
    tsv_path = write(tmp_path / "a.tsv", 'id\tbody\n1\t"unbalanced\n2\tit\'s "5" o\'clock\n')
    documents = list(read(Files(path=str(csv_path), text_field="body"), Skipped()))
    assert documents == [('two\nlines, "quoted"', f"{csv_path}:2"), ("plain", f"{csv_path}:5")]
    assert texts(tsv_path, text_field="body") == ['"unbalanced', "it's \"5\" o'clock"]


def test_a_field_may_be_longer_than_the_csv_module_allows(tmp_path):
    assert texts(write(tmp_path / "a.csv", "text\n" + "x" * 200_000)) == ["x" * 200_000]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_hold_the_same_text(tmp_path, suffix):
    content = "".join(f"line {i}\n" for i in range(20_000))
    half = len(content) // 2
    once = COMPRESS[suffix](content.encode())
    twice = COMPRESS[suffix](content[:half].encode()) + COMPRESS[suffix](content[half:].encode())
    assert texts(write(tmp_path / f"a.txt{suffix}", once)) == [content]
    assert texts(write(tmp_path / f"b.txt{suffix}", twice)) == [content]


def test_a_folder_is_its_supported_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "c.txt", "3")
    write(tmp_path / "a.txt", "1")
    write(tmp_path / "a2.jsonl", '{"text": "2"}')
    write(tmp_path / "image.png", b"\x89PNG")
    assert texts(tmp_path) == ["1", "2", "3"]
    assert texts(tmp_path / "**" / "*.txt") == ["1", "3"]


@pytest.mark.parametrize(("span", "expected"), [((0, 0.9), "é12345678"), ((0.9, 1), "9"), ((0.25, 0.59), "234")])
def test_spans_cut_characters_rounding_down(tmp_path, span, expected):
    path = write(tmp_path / "a.txt", "é123456789")
    assert texts(path, span=span) == [expected]
    assert texts(path, span=span, document="line") == [expected]


def test_shakespeare_is_split_as_nanogpt_splits_it(shared_dataset):
    path = shared_dataset("language_modeling/tinyshakespeare") / "input.txt"
    (train,), (validation,) = texts(path, span=(0, 0.9)), texts(path, span=(0.9, 1))
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert train + validation == path.read_text()


def test_a_hugging_face_dataset_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the hf extra")
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "two")
    source = HuggingFace(path=str(tmp_path / "one"))
    assert [document.text for document in read(source, Skipped())] == ["a", "b"]
    test = HuggingFace(path=str(tmp_path / "two"), split="test")
    assert [document.text for document in read(test, Skipped())] == ["b"]
    assert fingerprint(source, tmp_path) != fingerprint(test, tmp_path)
    for changed, message in [
        ({"text_field": "txt"}, "has no column 'txt'; its columns are: text, n"),
        ({"text_field": "n"}, "column 'n' must hold text, found int"),
        ({"path": str(tmp_path / "two"), "split": "dev"}, "has no split 'dev'; its splits are: train, test"),
        ({"path": str(tmp_path / "none")}, "the dataset cannot be loaded"),
    ]:
        with pytest.raises(DataError, match=message):
            list(read(source.model_copy(update=changed), Skipped()))


def test_without_the_datasets_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'quire\[hf\]'"):
        list(read(HuggingFace(path="never/loaded"), Skipped()))


def test_the_embedded_corpus_is_prose():
    documents = list(read(PythonDocs(), Skipped()))
    corpus = "\n\n".join(document.text for document in documents)
    assert len(corpus) > 1_000_000
    assert len({document.text for document in documents}) == len(documents)
    assert min(len(document.text) for document in documents) >= python_docs.MIN_CHARACTERS
    assert ">>>" not in corpus
    assert "::=" not in corpus
    words = corpus.split()
    assert sum(word.strip("(\"'“”.,:;)").isalpha() for word in words) > 0.85 * len(words)
    assert sum(word in {"the", "The", "a", "is", "of", "to", "and", "in"} for word in words) > 0.15 * len(words)


# What is refused


def test_a_missing_path_names_the_nearest(tmp_path):
    write(tmp_path / "corpus.txt", "x")
    message = error_of(tmp_path / "corpsu.txt")
    assert "no such file or folder; did you mean" in message
    assert message.endswith("corpus.txt?")


def test_a_glob_without_matches(tmp_path):
    assert "no file matches this pattern" in error_of(tmp_path / "*.txt")


def test_an_unsupported_suffix_names_the_supported(tmp_path):
    message = error_of(write(tmp_path / "a.parquet", "x"))
    assert "unsupported kind of file; expected a name that ends in .txt, .jsonl, .csv, .tsv" in message


def test_a_folder_with_nothing_supported(tmp_path):
    write(tmp_path / "a.pdf", "x")
    assert "the folder has no file that ends in .txt" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path, name, content):
    assert error_of(write(tmp_path / name, content)) == f"{tmp_path / name}: is empty"


def test_an_empty_compressed_file(tmp_path):
    for suffix, compress in COMPRESS.items():
        assert error_of(write(tmp_path / f"a.txt{suffix}", b"")).endswith("is empty")
        assert error_of(write(tmp_path / f"b.txt{suffix}", compress(b""))).endswith("is empty")


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_compressed_file_cut_anywhere_is_an_error(tmp_path, suffix, on_error):
    lines = "".join(json.dumps({"text": f"{i} {i * i}"}) + "\n" for i in range(500))
    whole = COMPRESS[suffix](lines.encode())
    for size in [*range(1, 40), *range(40, len(whole), 97), *range(len(whole) - 20, len(whole))]:
        path = write(tmp_path / f"a.jsonl{suffix}", whole[:size])
        assert "is truncated or damaged: " in error_of(path, on_error=on_error), size
    for document in ("file", "paragraph", "line"):
        path = write(tmp_path / f"a.txt{suffix}", whole[:-20])
        assert "is truncated or damaged: " in error_of(path, on_error=on_error, document=document)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damage_after_a_first_stream_is_not_taken_for_the_end(tmp_path, suffix):
    whole = COMPRESS[suffix](b"one\n")
    path = write(tmp_path / f"a.txt{suffix}", whole + b"damaged header" + whole)
    assert "is truncated or damaged: " in error_of(path)


@pytest.mark.parametrize("document", ["file", "line", "paragraph"])
def test_undecodable_bytes_name_line_and_byte(tmp_path, document):
    path = write(tmp_path / "a.txt", b"good\n\nb\xc3\xa9\nab\xffc\n\nrest\n")
    message = error_of(path, document=document)
    assert message == f"{path}:4: byte 3 of the line (0xff) is not valid UTF-8"
    skipped = Skipped()
    kept = {"file": [], "line": ["good", "", "bé", "", "rest"], "paragraph": ["good", "rest"]}[document]
    assert texts(path, skipped, document=document, on_error="skip") == kept
    assert (skipped.count, skipped.messages) == (1, [message])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_is_named(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # Python adds it to the other two
    path = write(tmp_path / "a.txt", (mark + "text").encode(encoding))
    assert "is UTF-16 or UTF-32 text; convert it to UTF-8" in error_of(path)


BAD_LINES = {
    '{"text": "a"': "is not valid JSON: Expecting ',' delimiter",
    '["text"]': "expected a JSON object, found an array",
    '{"body": "x", "id": 1}': "has no field 'text'; its fields are: 'file', 'body', 'id'",
    '{"text": 3}': "field 'text' must be a string, found a number",
    '{"text": null}': "field 'text' must be a string, found null",
    '{"text": "\\ud800"}': "the text is not valid Unicode: half a character (U+D800) at character 1",
    "[" * 100_000: "JSON is nested too deeply",
    '{"text": "a", "n": ' + "9" * 5000 + "}": "is not valid JSON: Exceeds the limit",
    '"' + "\x00": "is not valid JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20].strip("\x00"))
def test_bad_json_lines_fail_with_their_place_or_are_counted(tmp_path, line):
    path = write(tmp_path / "a.jsonl", '{"text": "first"}\n' + line + '\n{"text": "last"}\n')
    message = error_of(path)
    assert message.startswith(f"{path}:2: {BAD_LINES[line]}")
    skipped = Skipped()
    assert texts(path, skipped, on_error="skip") == ["first", "last"]
    assert skipped.count == 1
    assert skipped.messages == [message]


def test_only_the_first_messages_are_kept(tmp_path):
    skipped = Skipped()
    path = write(tmp_path / "a.jsonl", "{\n" * 1000)
    assert texts(path, skipped, on_error="skip") == []
    assert (skipped.count, len(skipped.messages)) == (1000, Skipped.MAX_MESSAGES)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_missing_column_names_the_columns(tmp_path, on_error):
    path = write(tmp_path / "a.csv", "id,body\n1,x\n")
    assert error_of(path, on_error=on_error) == f"{path}: has no field 'text'; its fields are: 'file', 'id', 'body'"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"1", "has 1 columns, expected 2: id, text"),
        (b"1,a,b", "has 3 columns, expected 2: id, text"),
        (b'1,"a"b', "is not a valid quoted record: ',' expected after '\"'"),
        (b"1,a\xff", "the text is not valid Unicode: byte 0xff at character 2"),
    ],
)
def test_bad_rows_fail_with_their_place_or_are_counted(tmp_path, row, message):
    path = write(tmp_path / "a.csv", b"id,text\n0,first\n" + row + b"\n2,last\n")
    assert error_of(path) == f"{path}:3: {message}"
    skipped = Skipped()
    assert texts(path, skipped, on_error="skip") == ["first", "last"]
    assert skipped.count == 1


def test_an_open_quote_does_not_swallow_the_rest_silently(tmp_path):
    path = write(tmp_path / "a.csv", 'text\nfirst\n"open\nrest\n')
    assert error_of(path) == f"{path}:3: is not a valid quoted record: unexpected end of data"


def test_spans_are_for_text_files(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n')
    assert error_of(path, span=(0.0, 0.5)) == (f"{path}: span cuts .txt files only; remove it, or make separate files")


def test_a_line_over_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 2**20)
    path = write(tmp_path / "a.txt", b"a\n" + b"x" * 3 * 2**20 + b"\nb\n")
    assert error_of(path, document="line") == f"{path}:2: the line is longer than 1 MiB"
    skipped = Skipped()
    assert texts(path, skipped, document="line", on_error="skip") == ["a", "b"]
    assert skipped.count == 1


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    assert "cannot be read" in error_of(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["a.txt", "a.jsonl", "a.csv", "a.tsv.zst", "a.txt.xz"]),
)
def test_any_bytes_end_in_documents_or_one_data_error(tmp_path, content, name):
    path = write(tmp_path / name, content)
    for options in (
        {},
        {"on_error": "skip"},
        {"document": "line"},
        {"document": "paragraph", "on_error": "skip"},
    ):
        try:
            for text in texts(path, **options):
                text.encode("utf-8")
        except DataError as error:
            assert str(path) in str(error)


# Fingerprints


def test_a_fingerprint_follows_the_content_alone(tmp_path):
    cache_dir = tmp_path / "cache"
    a, b = write(tmp_path / "a.txt", "one"), write(tmp_path / "b.txt", "one")
    first = fingerprint(Files(path=str(a)), cache_dir)
    assert fingerprint(Files(path=str(a)), cache_dir) == first
    (cache_dir / "fingerprints.json").write_text("damaged")
    assert fingerprint(Files(path=str(a)), cache_dir) == first
    write(a, "two")
    assert fingerprint(Files(path=str(a)), cache_dir) != first
    assert fingerprint(Files(path=str(tmp_path / "*.txt")), cache_dir) != fingerprint(Files(path=str(b)), cache_dir)
