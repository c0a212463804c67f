"""`python -m data`: a table or JSON on stdout, one sentence on stderr and status 2 for a user's mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data import tokenizer as tokenizers
from data.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("<p>the cat sat on the mat</p>\n" * 50)
    return path


@pytest.mark.parametrize("kind", ["unigram", "bpe", "characters", "bytes"])
def test_a_tokenizer_is_trained_saved_and_measured(corpus, tmp_path, capsys, kind):
    options = ["--kind", kind, "--vocab-size", "300", "--clean", "html", "--out", str(tmp_path / "out")]
    if kind == "bpe":
        corpus.write_text(corpus.read_text() + " ".join(f"w{a}{b}x" for a in "abcdefgh" for b in "ijklmnop"))
    assert main(["tokenizer", str(corpus), *options, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    tokenizer = tokenizers.load(tmp_path / "out")
    assert table["vocab_size"] == tokenizer.vocab_size
    assert table["kind"] == kind
    assert table["bytes_per_token"] == table["characters_per_token"] >= 1
    assert "<" not in "".join(table["pieces"])
    assert main(["tokenizer", str(corpus), *options]) == 0
    assert "characters per token" in capsys.readouterr().out


def test_show_prints_documents_before_and_after_cleaning(corpus, tmp_path, capsys):
    arguments = ["show", str(corpus), "--document", "line", "-n", "1", "--clean", "html,white_space"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == f"--- {corpus}:1 (29 characters)"
    assert lines[1:4] == [
        "<p>the cat sat on the mat</p>",
        "--- cleaned (22 characters)",
        "the cat sat on the mat",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere/corpus.txt"], "nowhere/corpus.txt: no such file or folder"),
        (["show", "python_docs", "--clean", "htlm"], "htlm: Extra inputs are not permitted"),
        (
            ["tokenizer", "{corpus}", "--kind", "bpe", "--out", "{out}"],
            "the text is too small for vocab_size 8192",
        ),
        (
            ["tokenizer", "{corpus}", "--vocab-size", "7", "--out", "{out}"],
            "vocab-size: Input should be greater",
        ),
        (["tokenizer", "{corpus}", "--kind", "bytes", "--out", "{corpus}/x"], "Not a directory"),
        (["show", "{corpus}", "--tokenizer", "{out}"], "no tokenizer can be read here"),
        (["records", "{corpus}", "--pattern", "("], "'(' is not a regular expression"),
        (["records", "{corpus}", "-n", "-1"], "-n must be at least 1, got -1"),
        (["show", "{corpus}", "-n", "0"], "-n must be at least 1, got 0"),
        (["records", "{corpus}", "--format", "yaml"], "format: Input should be 'auto', 'jsonl'"),
    ],
)
def test_a_mistake_is_one_sentence(corpus, tmp_path, capsys, arguments, message):
    places = {"corpus": corpus, "out": tmp_path / "out"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_records_are_shown_by_column(tmp_path, capsys):
    (tmp_path / "a.tsv").write_bytes(b"ham\tsee you \xff\nspam\tbuy\n")
    assert main(["records", str(tmp_path / "a.tsv"), "--columns", "label,text", "-n", "1"]) == 0
    assert capsys.readouterr().out == f"--- {tmp_path}/a.tsv:1\nfile: a.tsv\nlabel: ham\ntext: see you ?\n"


def test_the_command_line_has_no_traceback(tmp_path):
    command = [sys.executable, "-m", "data", "show", str(tmp_path / "missing.txt")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path / 'missing.txt'}: no such file or folder\n"
