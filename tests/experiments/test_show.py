"""`python -m experiments show` tells what a task's model reads and what it is to answer, in words."""

import pytest

from data.config import Bytes, DataConfig
from data.task_config import (
    Classification,
    Dialogue,
    Records,
    Regression,
    SpanAnswering,
    Tagging,
    TextToText,
    num_outputs,
)
from experiments.__main__ import examples
from model.config import TransformerConfig
from train.config import Experiment

SHOWN = [
    (
        Classification(labels=("0", "1"), names=("bad", "good")),
        "sequence",
        '{"text": "ab", "label": 1}',
        {"label": "good"},
    ),
    (Regression(), "sequence", '{"text": "ab", "label": 2.5}', {"label": "2.5"}),
    (Tagging(types=("X",)), "tokens", '{"tokens": ["a", "b"], "tags": ["B-X", "O"]}', {"tags": "a/B-X  /O"}),
    (
        SpanAnswering(),
        "span",
        '{"context": "x ab", "question": "q", "answers": [{"text": "ab", "answer_start": 2}]}',
        {"answer": "a b"},
    ),
    (TextToText(), None, '{"source": "ab", "target": "c"}', {"targets": "c </s>"}),
    (Dialogue(), None, '{"turns": ["a", "b"]}', {"targets": "b <|end|>"}),
]


@pytest.mark.parametrize(("task", "head", "record", "shown"), SHOWN, ids=[each[0].kind for each in SHOWN])
def test_the_examples_of_a_task_are_shown_in_words(tmp_path, task, head, record, shown):
    (tmp_path / "a.jsonl").write_text(record)
    data = DataConfig(
        train=Records(path=str(tmp_path / "a.jsonl")),
        tokenizer=Bytes(),
        length=32,
        cache_dir=str(tmp_path),
        held_out_fraction=0,
    )
    encoder = {"stack": "encoder", "heads": (head,), "num_labels": num_outputs(task) or 2} if head else {}
    model = TransformerConfig(num_layers=1, vocab_size=300, max_length=32, **encoder)
    found = examples(Experiment(model=model, data=data, objective=task), 2)
    assert len(found) == 2
    for example in found:
        assert {name: example[name] for name in shown} == shown
        assert "a" in example["inputs"]
