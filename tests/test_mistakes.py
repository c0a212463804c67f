"""What a user can get wrong, each with the sentence that says so: exit code 2, no traceback, nothing written."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from train.__main__ import main

FILE = str(Path(tiny.__file__))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny.write_text(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments: str) -> str:
    """What `python -m train` says on stderr when it refuses."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert all(line.startswith("error: ") for line in said.splitlines())
    return said


FLAGS = {
    "unknown field": (["--model.num-haeds", "8"], "model.num_haeds: there is no such field. Did you mean 'model.num_heads'?"),
    "unknown section": (["--modle.num-heads", "8"], "modle.num_heads: there is no such field. Did you mean 'model.num_heads'?"),
    "text for an integer": (["--num-steps", "many"], "num_steps: input should be a valid integer"),
    "text for a number": (["--optimizer.peak-learning-rate", "fast"], "optimizer.adamw.peak_learning_rate: input should be a valid number"),
    "text for a boolean": (["--model.use-bias", "maybe"], "model.use_bias: input should be a valid boolean"),
    "negative": (["--batch-size", "-4"], "batch_size: input should be greater than 0"),
    "not a choice": (["--model.norm", "batch"], "model.norm: input should be 'layer' or 'rms'"),
    "not an optimizer": (["--optimizer.kind", "adamm"], "optimizer.kind: 'adamm' is none of sgd, adam, adamw, adafactor, lion, muon. Did you mean 'adam'?"),
    "field of another optimizer": (["--optimizer.kind", "sgd", "--optimizer.b1", "0.8"], "optimizer.sgd.b1: there is no such field."),
    "heads that do not divide": (["--model.num-heads", "5"], "model: num_heads=5 does not divide embed_dim=32"),
    "kv heads that do not divide": (["--model.num-kv-heads", "3"], "model: num_kv_heads=3 does not divide num_heads=4"),
    "length over the model's": (["--data.length", "64"], "data.length=64 is longer than model.max_length=32"),
    "accumulation that does not divide": (["--accumulation-steps", "3"], "accumulation_steps=3 does not divide batch_size=8"),
    "warm-up over the run": (["--optimizer.schedule.warmup-steps", "41"], "optimizer.schedule.warmup_steps=41 (with the decay) is more than num_steps=40"),
    "tokenizer over the model": (["--data.tokenizer.kind", "sentencepiece"], "data.tokenizer.vocab_size=8192 is larger than model.vocab_size=260"),
    "unknown mesh axis": (["--mesh.rules", '{"embed": ["model"]}'], "mesh: rules name unknown mesh axes ['model']"),
    "missing text": (["--data.train", "txet.txt"], "data.train.0.path: there is no file txet.txt. Did you mean 'text.txt'?"),
    "missing run to start from": (["--init-from", "nowhere"], "init_from: there is no file nowhere."),
    "mesh over the machine": (["--mesh.tensor", "64"], "tensor=64 does not fit the 8 cpu device(s)"),
    "batch that the mesh does not divide": (["--mesh.data", "8", "--batch-size", "12"], "batch_size: 12 examples cannot be split over 8 groups"),
    "decay pattern for nothing": (["--optimizer.no-decay", '["biass"]'], "optimizer.no_decay: pattern 'biass' matches no parameter"),
    "vocabulary too small": (["--model.vocab-size", "100"], "model.vocab_size: the tokenizer has 260 tokens, the model only 100"),
    "objective of another stack": (["--objective.kind", "masked_lm"], "objective.kind=masked_lm needs model.stack=encoder, not decoder"),
    "loss without a file": (["--loss.function", "mine.py:focal"], "loss.function: there is no file mine.py"),
    "loss that is no function": (["--loss.function", "text.txt"], "loss.function: string should match pattern"),
    "loss with smoothing": (["--loss.function", "mine.py:focal", "--loss.z-loss", "0.1"], "loss: function stands in place of cross entropy: label_smoothing and z_loss must be 0"),
    "objective without its head": (["--objective.kind", "masked_lm", "--model.stack", "encoder", "--model.heads", '["span"]'], "model.heads: objective.kind=masked_lm trains ['lm'], the model has ['span']"),
    "unknown objective": (["--objective.kind", "maskedlm"], "objective.kind: 'maskedlm' is none of causal_lm"),
    "sentinels over the model": (["--objective.kind", "span_corruption"], "model.vocab_size: the tokenizer has 360 tokens, the model only 260"),
    "flag given twice": (["--data.train", "text.txt", "--data.train=text.txt"], """data.train: is given 2 times; several values are one list, such as '["a", "b"]'"""),
    "word without a flag": (["fast"], "'fast': expected --field value"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FLAGS)
def test_flags(folder, capsys, mistake):
    flags, sentence = FLAGS[mistake]
    assert sentence in run(capsys, f"{FILE}:tiny", *flags, "--run-dir", "made")
    assert not list(Path("made").glob("checkpoints/*"))


TARGETS = {
    "no experiment named": ([], "which experiment?"),
    "unknown experiment": (["gtp2:small"], "there is no experiment 'gtp2'. Did you mean 'gpt2'?"),
    "unknown variant": (["gpt2:smal"], "gpt2 has no variant 'smal'. Did you mean 'small'? Variants: gpt2:small,"),
    "no variant": (["gpt2"], "gpt2: which one? Variants: gpt2:small,"),
    "missing file": (["nowhere.py:x"], "there is no experiment 'nowhere.py'"),
    "missing config": (["nowhere.json"], "there is no file nowhere.json"),
    "file with a syntax error": (["broken.py:x"], "broken.py, line 2:"),
    "config with an unknown field": (["old.json"], "old.json: model.num_layer: there is no such field. Did you mean 'num_layers'?"),
    "config that is not JSON": (["half.json"], "half.json is not readable JSON"),
    "experiment with an impossible model": (["impossible.py:x"], "x(): TransformerConfig: num_heads=3 does not divide embed_dim=32"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TARGETS)
def test_targets(folder, capsys, mistake):
    Path("broken.py").write_text("x = 1\ndef x(:\n")
    Path("old.json").write_text(json.dumps({"model": {"num_layer": 3}}))
    Path("half.json").write_text('{"model": ')
    Path("impossible.py").write_text(
        "from train.config import Experiment\nfrom model.config import TransformerConfig\n"
        "def x() -> Experiment:\n    return Experiment(model=TransformerConfig(embed_dim=32, num_heads=3))\n"
    )
    arguments, sentence = TARGETS[mistake]
    assert sentence in run(capsys, *arguments)


TEXTS = {
    "empty file": ("empty.txt", "empty.txt: is empty"),
    "truncated gz": ("cut.txt.gz", "cut.txt.gz: is truncated or damaged"),
    "undecodable bytes": ("latin.txt", "latin.txt:2"),
    "malformed line": ("bad.jsonl", "bad.jsonl:2"),
    "missing column": ("table.csv", "title"),
    "unsupported format": ("paper.pdf", ".jsonl"),
    "folder without text": ("pictures", "pictures"),
}


@pytest.mark.parametrize("mistake", TEXTS)
def test_texts(folder, capsys, mistake):
    Path("empty.txt").write_text("")
    whole = gzip.compress(("A line of text, and then another one.\n" * 500).encode())
    Path("cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    Path("latin.txt").write_bytes("one\nna\u00efve\n".encode("latin-1"))
    Path("bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    Path("table.csv").write_text("title,body\na,b\n")
    Path("paper.pdf").write_bytes(b"%PDF-1.7")
    Path("pictures").mkdir()
    name, sentence = TEXTS[mistake]
    said = run(capsys, f"{FILE}:tiny", "--run-dir", "made", "--data.train", name)
    assert sentence in said and len(said.splitlines()) == 1


def test_all_mistakes_come_at_once(folder, capsys):
    said = run(
        capsys, f"{FILE}:tiny", "--model.num-haeds", "8", "--model.num-heads", "5", "--batch-size", "x",
        "--data.length", "64", "--optimizer.b2", "2", "--data.train", "gone.txt", "--mesh.fsdp", "0",
    )  # fmt: skip
    for part in ("num_haeds", "num_heads=5", "batch_size", "data.length=64", "b2", "gone.txt", "mesh.fsdp"):
        assert part in said


def test_a_bad_line_can_be_skipped_and_is_counted(folder, capsys):
    lines = [json.dumps({"text": f"The square of {n} is {n * n}."}) for n in range(300)]
    Path("some.jsonl").write_text("\n".join([*lines[:100], "{broken", *lines[100:]]) + "\n")
    source = json.dumps({"kind": "files", "path": "some.jsonl", "on_error": "skip"})
    flags = ["--num-steps", "5", "--run-dir", "made", "--optimizer.schedule.warmup-steps", "0"]
    assert main([f"{FILE}:tiny", "--data.train", source, *flags]) == 0
    assert "1 bad records skipped, the first: some.jsonl:101" in capsys.readouterr().out


def test_the_process_itself_exits_with_two_and_is_quick(folder):
    command = [sys.executable, "-m", "train", "gpt2:tiny", "--modle.x", "1"]
    environment = os.environ | {"QUIRE_DATA": str(folder)}
    ended = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "modle.x" in ended.stderr and "wikitext2" in ended.stderr


def test_help_names_every_field_without_loading_jax(folder):
    code = (
        "import sys\nfrom train.command_line import parse\n"
        "try:\n    parse(['quickstart', '--help'])\n"
        "finally:\n    assert 'jax' not in sys.modules and 'numpy' not in sys.modules, 'slow imports'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    from train.config import Experiment

    def names(model, prefix=""):
        for name, field in model.model_fields.items():
            inner = getattr(field.annotation, "model_fields", None)
            yield from names(field.annotation, f"{prefix}{name}.") if inner else [prefix + name]

    for name in names(Experiment):
        assert "--" + name.replace("_", "-") in ended.stdout.replace("\n", ""), name
