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
    assert "argument --greedy: not allowed with argument --temperature" in stderr(
        tiny_run, "--temperature", "1", "--greedy"
    )


LINES, RECORDS = ["--input", "lines.txt", "--output", "o.txt"], ["--input", "bad.jsonl", "--output", "o.jsonl"]
FLAGS = {
    "search without beams": (["--n-best", "2", "--beam-groups", "2"], "--beam-groups, --n-best: for a beam search"),
    "sampling with beams": (["--beam-size", "2", "--top-k", "3", "--seed", "1"], "--top-k, --seed: for sampling only"),
    "greedy with beams": (["--beam-size", "2", "--greedy"], "--temperature or --greedy: for sampling only"),
    "too many best": (["--beam-size", "2", "--n-best", "3"], "n_best=3 is more than beam_size=2"),
    "coverage of a decoder": (["--beam-size", "2", "--coverage-penalty", "1"], "coverage_penalty needs an encoder"),
    "unknown token": (["--first-token", "de_DE"], "first_token: the tokenizer has no token 'de_DE'"),
    "negative": (["--no-repeat-ngram", "-1"], "no_repeat_ngram must be at least 0, not -1"),
    "input alone": (LINES[:2], "--input and --output belong together"),
    "input beside prompts": ([*LINES, "--json"], "--input: takes the place of"),
    "field of lines": ([*LINES, "--field", "x"], "--field: only the lines of a .jsonl"),
    "new field of lines": ([*LINES, "--output-field", "x"], "--output-field: only the"),
    "several texts a line": ([*LINES, "--samples", "2"], "o.txt holds one text, not several"),
    "no such input": (["--input", "none.txt", "--output", "o.txt"], "none.txt: cannot be read: No such file"),
    "not a text": (RECORDS, "bad.jsonl:2: expected an object with a text in the field 'prompt'"),
    "no such field": ([*RECORDS, "--field", "x"], "with a text in the field 'x', only prompt, made"),
    "no JSON": (["--input", "lines.jsonl", "--output", "o.txt"], "lines.jsonl:1: not JSON"),
    "field that is there": ([*RECORDS, "--output-field", "made"], "bad.jsonl:1: has a field 'made' already"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_that_do_not_fit(case, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("The\n")
    (tmp_path / "lines.jsonl").write_text("The\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "The", "made": 1}\n{"prompt": 7, "made": 1}\n')
    arguments, message = FLAGS[case]
    assert message in fails(generate.main, [tiny_run, *arguments], capsys)
    assert not list(tmp_path.glob("o.*"))


def test_a_file_of_prompts(tiny_run, tmp_path, capsys):
    """Lines and records, by beams and by samples; the same texts as prompts on the command line."""
    lines, records = tmp_path / "lines.txt", tmp_path / "records.jsonl"
    lines.write_text("The quick\n\nüber\n", "utf-8")
    asked = [{"id": 1, "question": "The quick"}, {"id": 2, "question": ""}, {"id": "\ud83d", "question": "über"}]
    records.write_text("\n \n".join(json.dumps(record) for record in asked) + "\n\n", "utf-8")  # blank lines aside

    def written(source, output, *arguments):
        shared = ["--input", str(source), "--output", str(tmp_path / output), "--max-new-tokens", "6"]
        assert generate.main([str(tiny_run), *shared, *arguments]) == 0
        assert f"{output}: " in capsys.readouterr().out
        return (tmp_path / output).read_text("utf-8").split("\n")[:-1]

    beams = ["--beam-size", "3", "--no-repeat-ngram", "2"]
    texts = written(lines, "texts.txt", *beams)
    asked_for = [argument for record in asked for argument in ("--prompt", record["question"])]
    assert generate.main([str(tiny_run), *asked_for, "--max-new-tokens", "6", *beams, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert texts == [" ".join(text["text"].splitlines()) for text in found] and len(texts) == 3
    assert found[0]["score"] < 0 and found[0]["beam_search"]["beam_size"] == 3
    assert found[0]["constraints"]["no_repeat_ngram"] == 2
    answered = [json.loads(line) for line in written(records, "a.jsonl", *beams, "--field", "question")]
    assert answered == [record | {"generated": text["text"]} for record, text in zip(asked, found, strict=True)]
    several = ["--samples", "2", "--field", "question", "--output-field", "answers"]
    answered = [json.loads(line) for line in written(records, "b.jsonl", *several)]
    assert [len(record["answers"]) for record in answered] == [2, 2, 2]
    [first, *_] = [json.loads(line) for line in written(lines, "c.jsonl", "--greedy")]
    assert first.keys() == {"prompt", "generated"} and first["prompt"] == "The quick"


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
    assert generate.main([*shared, "--first-token", "Q"]) == 0
    assert capsys.readouterr().out.startswith("From a fileQ")
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
    tokenized = tmp_path / "tokenized.txt"
    tokenized.write_text(" It didn 't stop . \n")
    assert measure.main([str(tiny_run), "--text", str(tokenized), "--detokenize", "ptb", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["words"], result["bytes"], result["tokens"]) == (6, 20, len("It didn't stop.\n") + 1)


def test_mistakes_in_measuring(tiny_run, tmp_path, capsys):
    def stderr(*argv):
        return fails(measure.main, argv, capsys)

    assert "error: nowhere is not a run directory" in stderr("nowhere")
    both = stderr(tiny_run, "--stride", "33", "--batch-size", "0")
    assert "--stride must be from 1 to the length 32" in both and "--batch-size" in both
    assert "no such file" in stderr(tiny_run, "--text", tmp_path / "none.txt")
