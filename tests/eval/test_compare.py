"""A run is no better than itself, and what was not asked the same cannot be compared."""

import json
import shutil
from itertools import count

import pytest
import task_runs

from data.task_config import Classification
from eval import results
from eval.__main__ import main as evaluate
from eval.compare import compare
from train.config import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return task_runs.write_run(task_runs.experiment(tmp_path_factory.mktemp("compare"), "classification"))


def compared(arguments, capsys) -> dict:
    assert evaluate(["compare", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_and_itself(run, capsys):
    result = compared([run, run], capsys)
    assert result["records"] == 14 and [c["name"] for c in result["comparisons"]][:2] == ["accuracy", "f1"]
    for found in result["comparisons"]:
        assert found["difference"] == found["low"] == found["high"] == 0
        assert found["p_value"] == 1 and found["better"] == "neither"


def test_stored_predictions_serve_only_for_their_step_and_protocol(run, tmp_path, capsys):
    folder = run / "evaluation" / "validation-0"
    compared([run, run], capsys)
    # Predictions that the model did not make: all right.
    _, found = results.read(folder)
    right = [p | {"predicted": p["expected"]} for p in found]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(p) + "\n" for p in right))
    other = tmp_path / "other"
    shutil.copytree(run, other)
    shutil.rmtree(other / "evaluation")
    result = compared([run, other], capsys)["comparisons"][0]
    assert result["first"] == 1 > result["second"] and result["difference"] == pytest.approx(1 - result["second"])
    # Made in another way, they are made again.
    stored = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(stored | {"protocol": stored["protocol"] | {"length": 8}}))
    assert compared([run, other], capsys)["comparisons"][0]["difference"] == 0
    assert evaluate(["compare", str(run), str(other)]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_difference_has_its_sign():
    objective = Classification(labels=("a", "b"))
    asked = [{"text": str(i), "expected": "ab"[i % 2]} for i in range(40)]
    first = [p | {"predicted": p["expected"]} for p in asked]
    second = [p | {"predicted": "a"} for p in asked]
    for name in ("accuracy", "f1", "matthews"):
        [found] = [c for c in compare(objective, first, second) if c.name == name]
        assert found.better == "first" and found.p_value < 0.01 and found.low > 0
        [found] = [c for c in compare(objective, second, first) if c.name == name]
        assert found.better == "second" and found.high < 0


def test_what_was_asked_must_be_the_same(run, tiny_run, capsys):
    objective = Classification(labels=("a", "b"))
    one = [{"text": "x", "expected": "a", "predicted": "a"}, {"text": "y", "expected": "b", "predicted": "a"}]
    with pytest.raises(UserError, match="2 and 2, and the first difference is record 2"):
        compare(objective, one, [one[0], one[1] | {"expected": "a"}])
    with pytest.raises(UserError, match="2 and 1, and one ends before the other"):
        compare(objective, one, one[:1])
    with pytest.raises(SystemExit) as ended:
        evaluate(["compare", str(run), str(tiny_run)])
    assert ended.value.code == 2
    assert "learned causal_lm, which is no task" in capsys.readouterr().err


def test_labels_must_be_the_same(run, tmp_path, capsys):
    other = task_runs.experiment(tmp_path, "classification", {"labels": ["bad", "good", "odd"]}, {"num_labels": 3})
    with pytest.raises(SystemExit) as ended:
        evaluate(["compare", str(run), str(task_runs.write_run(other))])
    assert ended.value.code == 2
    assert "these learned 'bad', 'good' and 'bad', 'good', 'odd'" in capsys.readouterr().err


def test_perplexity_per_token_compares_only_the_same_tokens(tmp_path, monkeypatch, capsys):
    run = task_runs.write_run(task_runs.experiment(tmp_path, "dialogue"))
    names = {c["name"] for c in compared([run, run], capsys)["comparisons"]}
    assert {"perplexity", "word_perplexity", "distinct_1"} < names
    differing = count()
    monkeypatch.setattr("data.tokenizer.fingerprint", lambda tokenizer: str(next(differing)))
    assert {c["name"] for c in compared([run, run], capsys)["comparisons"]} == names - {"perplexity"}
