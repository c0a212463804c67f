"""Baselines learn from training records alone, say what they are, and stand beside the run."""

import json

import pytest
import task_runs

from data.records import Record
from data.task_config import Classification, Regression, SpanAnswering, Tagging, TextToText
from eval import results
from eval.__main__ import main as evaluate
from eval.baselines import baselines, sentences
from eval.task_measures import measures


def records(*fields):
    return [Record(field, f"r:{i}") for i, field in enumerate(fields)]


def answers(objective, train, tested, tuning=()):
    return {b.name: [a["predicted"] for a in b.answers] for b in baselines(objective, train, tuning, tested)}


@pytest.mark.parametrize(("good", "bad"), [("a good {} film", "a bad {} film"), ("这部{}电影很好", "这部{}电影很差")])
def test_words_and_characters_tell_labels_apart(good, bad):
    objective = Classification(labels=("0", "1"))
    texts = [(good if i % 3 else bad).format("new old big odd".split()[i % 4]) for i in range(24)]
    train = records(*({"text": text, "label": str(int(i % 3 > 0))} for i, text in enumerate(texts)))
    tested = records({"text": good.format("red"), "label": "1"}, {"text": bad.format("red"), "label": "0"})
    found = answers(objective, train, tested, tested)
    assert found == {"majority": ["1", "1"], "tfidf_logistic": ["1", "0"]}
    [_, logistic] = baselines(objective, train, tested, tested)
    grams = "character 1- to 3-grams" if "好" in good else "word 1- to 2-grams"
    assert grams in logistic.protocol and "by accuracy on validation" in logistic.protocol
    assert all(sum(a["probabilities"].values()) == pytest.approx(1) for a in logistic.answers)
    [_, untuned] = baselines(objective, train, (), tested)
    assert "C = 1.0, not tuned" in untuned.protocol


def test_likeness_of_texts():
    train = records(
        {"text": "a dog runs", "second_text": "a cat sits", "label": 1.0},
        {"text": "b", "second_text": "c", "label": 2.0},
    )
    tested = records(
        {"text": "a dog runs", "second_text": "a dog runs", "label": 5.0},
        {"text": "a dog runs", "second_text": "b c", "label": 0.0},
    )
    found = answers(Regression(), train, tested)
    assert found["mean"] == [1.5, 1.5] and found["tfidf_cosine"] == pytest.approx([5, 0])
    assert set(answers(Regression(), records({"text": "a", "label": 1.0}), records({"text": "a", "label": 1.0}))) == {
        "mean"
    }


def test_entities_are_looked_up_longest_first():
    objective = Tagging(types=("PER", "LOC"))
    train = records(
        {"tokens": ["New", "York", "and", "York"], "tags": ["B-LOC", "I-LOC", "O", "B-LOC"]},
        {"tokens": ["Jordan", "in", "Jordan"], "tags": ["B-PER", "O", "B-LOC"]},
    )
    tested = records({"tokens": ["New", "York", "York", "Jordan", "New"], "tags": ["O"] * 5})
    assert answers(objective, train, tested) == {"lookup": [[["LOC", 0, 2], ["LOC", 2, 3]]]}


def test_answers_and_texts():
    context = "It rained. The old king lived in Rome! Nobody knew."
    asked = records({"context": context, "question": "Where lived the king?", "answers": []})
    found = answers(SpanAnswering(may_have_no_answer=True), [], asked)
    assert found == {"first_sentence": ["It rained."], "most_words": ["The old king lived in Rome!"], "no_answer": [""]}
    train = records({"source": "s", "target": ["one two"]}, {"source": "s", "target": ["one two three four"]})
    tested = records({"source": "First one.  Then two! Third, and a fourth.", "target": ["x"]})
    found = answers(TextToText(scores=("rouge",)), train, tested)
    assert found["copy"] == [tested[0].fields["source"]] and found["start"] == ["First one.  Then"]
    assert found["lead_2"] == ["First one.\nThen two!"]
    assert set(answers(TextToText(), train, tested)) == {"copy"}
    assert answers(TextToText(scores=("accuracy",)), train, tested)["majority"] == ["one two"]
    assert sentences("他来了。她走了！\n好") == ["他来了。", "她走了！", "好"] and sentences(" ") == [""]
    assert sentences("It is 3.5 m.") == ["It is 3.5 m."]


def test_beside_a_run(tmp_path, capsys):
    run = task_runs.write_run(task_runs.experiment(tmp_path, "classification"))
    assert evaluate(["baseline", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [b["name"] for b in result["baselines"]] == ["majority", "tfidf_logistic"]
    assert result["baselines"][1]["scores"][0]["value"] == 1 and result["baselines"][1]["comparisons"][0]["second"] == 1
    stored, found = results.read(run / "evaluation" / "baselines" / "validation-tfidf_logistic")
    objective = task_runs.experiment(tmp_path, "classification").objective
    assert stored["scores"] == result["baselines"][1]["scores"]
    assert [m.value for m in measures(objective, found)] == [s["value"] for s in stored["scores"]]
    assert evaluate(["baseline", str(run)]) == 0
    assert "tfidf_logistic" in capsys.readouterr().out


def test_none_for_what_is_no_task(tiny_run, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate(["baseline", str(tiny_run)])
    assert ended.value.code == 2 and "for which there are no baselines" in capsys.readouterr().err
