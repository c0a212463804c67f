"""What a person types, and what they get for a mistake: a sentence and exit code 2."""

import json
import subprocess
import sys

import pytest

from eval import __main__ as measure
from eval import generate


def fails(main, argv, capsys) -> str:
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in argv])
    assert error.value.code == 2
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    return stderr


def test_parsing_does_not_wait_for_jax():
    code = "import sys, eval.generate, eval.__main__, eval.report; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_in_generating(tiny_run, tmp_path, capsys):
    def stderr(*argv):
        return fails(generate.main, argv, capsys)

    assert "error: nowhere is not a run directory" in stderr("nowhere")
    assert "error: temperature must be" in stderr(tiny_run, "--temperature", "-1")
    assert "error: top_p must be" in stderr(tiny_run, "--top-p", "0")
    assert "error: max_new_tokens must be" in stderr(tiny_run, "--max-new-tokens", "0")
    assert "error: --prompt-file: cannot read" in stderr(tiny_run, "--prompt-file", tmp_path / "none.txt")
    assert "has no checkpoint 7" in stderr(tiny_run, "--step", "7")
    assert "'soon' is neither" in stderr(tiny_run, "--step", "soon")
    (tmp_path / "bytes.txt").write_bytes(b"ab\xff")
    assert "not UTF-8 at byte 2" in stderr(tiny_run, "--prompt-file", tmp_path / "bytes.txt")


def test_generating(tiny_run, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("From a file\n")
    shared = [
        str(tiny_run),
        "--max-new-tokens",
        "5",
        "--greedy",
        "--prompt-file",
        str(tmp_path / "prompt.txt"),
    ]
    assert generate.main([*shared, "--prompt", "Typed", "--samples", "2", "--json"]) == 0
    texts = json.loads(capsys.readouterr().out)
    assert [(t["prompt"], t["sample"]) for t in texts] == [
        ("Typed", 0), ("Typed", 1), ("From a file", 0), ("From a file", 1)
    ]  # fmt: skip
    assert texts[0]["text"] == texts[1]["text"] and texts[0]["tokens"] == 5
    assert texts[0]["sampling"]["temperature"] == 0 and texts[0]["step"] == 0 and texts[0]["tokens_per_second"] > 0
    assert generate.main(shared) == 0
    live = capsys.readouterr().out
    assert live == f"From a file{generate.printable(texts[2]['text'])}\n"
    assert generate.main([*shared, "--prompt", "Typed"]) == 0
    assert f"--- prompt 2, sample 1 ---\n{live}" in capsys.readouterr().out


def test_measuring(tiny_run, tmp_path, capsys):
    assert measure.main([str(tiny_run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["data"], result["step"], result["length"], result["stride"]) == ("validation", 0, 32, 32)
    assert (result["words"], result["bytes"], result["tokens"]) == (40 * 12, 40 * 46, 40 * 46 + 1)
    (tmp_path / "own.txt").write_text("A text of one's own.\n" * 9)
    assert measure.main([str(tiny_run), "--text", str(tmp_path / "own.txt"), "--stride", "8"]) == 0
    table = capsys.readouterr().out
    assert "own.txt" in table and "windows of 32 tokens, one every 8" in table and "per word" in table


def test_mistakes_in_measuring(tiny_run, tmp_path, capsys):
    def stderr(*argv):
        return fails(measure.main, argv, capsys)

    assert "error: nowhere is not a run directory" in stderr("nowhere")
    both = stderr(tiny_run, "--stride", "33", "--batch-size", "0")
    assert "--stride must be from 1 to the length 32" in both and "--batch-size" in both
    assert "no such file" in stderr(tiny_run, "--text", tmp_path / "none.txt")
