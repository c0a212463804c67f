"""Training batches of a task are one sequence, whoever makes them; evaluation shows every example once."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import Bytes, Characters, DataConfig
from data.document import DataError
from data.pipeline import eval_batches, prepare, train_batches
from data.task_batches import ExampleOrder, padded_length
from data.task_config import (
    Augmentation,
    Classification,
    Dialogue,
    Records,
    Regression,
    SpanAnswering,
    Tagging,
    TextToText,
)
from data.tokenizer import fingerprint

LABELS = Classification(labels=("a", "b", "c"), class_weights="balanced")
QA = SpanAnswering(stride=8)
TASKS = [
    (LABELS, "encoder"),
    (Regression(), "encoder"),
    (Tagging(types=("X",)), "encoder"),
    (QA, "encoder"),
    (TextToText(), "encoder_decoder"),
    (TextToText(), "decoder"),
    (Dialogue(), "decoder"),
]
ids = [f"{task.kind}-{stack}" for task, stack in TASKS]
LENGTH = 48


def fields(kind, i):
    words = [f"w{j}" for j in range(i * 7 % 11 + 1)]
    text = " ".join(words) + f" number {i}"
    return {
        "classification": {"text": text, "label": "aab"[i % 3]},
        "regression": {"text": text, "second_text": str(i), "label": i % 6},
        "tagging": {"tokens": words, "tags": ["B-X"] + ["O"] * (len(words) - 1)},
        "span_answering": {
            "context": text,
            "question": f"which? {i}",
            "answers": [{"text": "number", "answer_start": text.index("number")}],
        },
        "text_to_text": {"source": text, "target": words[::-1][0] * (i % 4 + 1)},
        "dialogue": {"turns": [text, f"reply {i}", "and?", "so."]},
    }[kind]


def corpus_of(folder, task, stack, count=50, **options):
    path = folder / f"{task.kind}.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, **fields(task.kind, i)}) for i in range(count)))
    config = DataConfig(
        train=Records(path=str(path)),
        tokenizer=Bytes(),
        length=LENGTH,
        cache_dir=str(folder),
        **{"held_out_fraction": 0, **options},
    )
    return prepare(config, objective=task, stack=stack)


@pytest.fixture(scope="module", params=TASKS, ids=ids)
def case(request, tmp_path_factory):
    task, stack = request.param
    return task, stack, corpus_of(tmp_path_factory.mktemp("corpus"), task, stack)


def options_of(case, **options):
    task, stack, corpus = case
    fixed = {"tokenizer": corpus.tokenizer, "length": LENGTH, "attend_across_documents": False}
    return {**fixed, "objective": task, "stack": stack, "batch_size": 4, **options}


def training(case, **options):
    return train_batches(case[2].train, **options_of(case, **{"seed": 3, **options}))


def take(batches, count, start=0):
    with batches:
        batches.set_state({**batches.get_state(), "next_batch": start})
        return [next(batches) for _ in range(count)]


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


# Arrays


def test_the_arrays_are_those_that_are_documented(case):
    task, stack, corpus = case
    [batch] = take(training(case), 1)
    pair = isinstance(task, SpanAnswering | Regression)
    if stack == "encoder_decoder":
        sides = {"encoder": ("inputs", "segment_ids", "positions")}
        sides["decoder"] = (*sides["encoder"], "targets", "weights")
        assert batch.keys() == {f"{side}_{name}" for side, names in sides.items() for name in names}
    else:
        names = {"inputs", "segment_ids", "positions", "targets", "weights"}
        names |= {"sentence_ids"} if pair else set()
        names |= {"prefix"} if isinstance(task, TextToText) else set()
        assert batch.keys() == names
        whole = batch["inputs"].shape
        target = {"classification": (4,), "regression": (4,), "span_answering": (4, 2)}.get(task.kind, whole)
        assert batch["targets"].shape == target
        assert batch["weights"].shape == (target[:1] if task is QA else target)
        assert (batch["inputs"][batch["segment_ids"] == 0] == corpus.tokenizer.pad_id).all()
    for name, array in batch.items():
        is_float = name.endswith("weights") or (name == "targets" and isinstance(task, Regression))
        assert array.dtype == (np.float32 if is_float else bool if name == "prefix" else np.int32), name
        if array.ndim == 2 and name != "targets":
            assert array.shape[1] in {padded_length(n, LENGTH) for n in range(1, LENGTH + 1)}


def test_balanced_weights_make_labels_count_alike(tmp_path):
    case = LABELS, "encoder", corpus_of(tmp_path, LABELS, "encoder", count=48)
    batches = take(training(case), 12)
    sums = [sum(batch["weights"][batch["targets"] == label].sum() for batch in batches) for label in range(3)]
    assert sums == pytest.approx([16, 16, 0])
    fixed = LABELS.model_copy(update={"class_weights": (0.5, 2.0, 1.0)})
    case = fixed, "encoder", corpus_of(tmp_path, fixed, "encoder")
    [batch] = take(training(case), 1)
    assert (batch["weights"] == np.array([0.5, 2.0])[batch["targets"]]).all()
    assert {w for batch in eval_batches(case[2].train, **options_of(case)) for w in batch["weights"]} == {0, 1}


def test_what_a_row_says_is_its_example(case):
    task, stack, corpus = case
    examples = corpus.train
    for batch in eval_batches(examples, **options_of(case)):
        for row, number in enumerate(batch["example"]):
            real = {name.removeprefix("encoder_"): array[row] for name, array in batch.items()}
            if number < 0:
                assert all(
                    (array[row] == 0).all() for name, array in batch.items() if name.endswith(("weights", "ids"))
                )
                continue
            own = examples.row(number)
            count = real["segment_ids"].sum()
            tokens = own.get("inputs", own.get("sources", own.get("tokens")))
            shown = min(len(tokens), count)
            np.testing.assert_array_equal(real["inputs"][:shown], tokens[:shown])
            if stack == "encoder_decoder":
                assert count == len(own["sources"])
                read, written = (real[f"decoder_{name}"] for name in ("inputs", "targets"))
                size = len(own["targets"])
                assert real["decoder_weights"].tolist() == [1] * size + [0] * (len(written) - size)
                np.testing.assert_array_equal(written[:size], own["targets"])
                np.testing.assert_array_equal(read[1:size], own["targets"][:-1])
            elif "sources" in own:
                np.testing.assert_array_equal(real["targets"][real["weights"] > 0], own["targets"])
                assert count == len(own["sources"]) + len(own["targets"])
            else:
                assert count == (len(tokens) - 1 if "tokens" in own else examples.lengths[number])
            if "target" in own:
                assert real["targets"] == own["target"][0]
            if isinstance(task, Dialogue):
                np.testing.assert_array_equal(real["targets"][:count], tokens[1:])
                np.testing.assert_array_equal(real["weights"][:count] > 0, own["learned"][1:])
            if isinstance(task, Tagging):
                assert (real["weights"].sum()) == (own["words"] >= 0).sum()


# Order


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=300), batch_size=st.integers(1, 40), seed=st.integers(0, 9)
)
def test_every_example_comes_once_an_epoch(lengths, batch_size, seed):
    order = ExampleOrder(np.array(lengths), batch_size, seed)
    steps = -(-3 * len(lengths) // batch_size)
    numbers, epochs = (np.concatenate(part) for part in zip(*map(order.batch, range(steps)), strict=True))
    for epoch in range(3):
        assert sorted(numbers[epochs == epoch]) == list(range(len(lengths)))
    assert (np.diff(epochs) >= 0).all()
    later = ExampleOrder(np.array(lengths), batch_size, seed)
    np.testing.assert_array_equal(later.batch(steps - 1)[0], order.batch(steps - 1)[0])


def test_like_lengths_come_together_and_in_no_fixed_order():
    lengths = np.random.default_rng(0).integers(1, 200, 10_009)
    order = ExampleOrder(lengths, 16, 0)
    for first in (0, 626, 1252):  # in later epochs, too, which begin within a batch
        batches = [lengths[order.batch(first + step)[0]] for step in range(625)]
        waste = 1 - sum(batch.sum() for batch in batches) / sum(16 * batch.max() for batch in batches)
        assert waste < 0.03
        assert abs(np.corrcoef(np.arange(625), [batch.mean() for batch in batches])[0, 1]) < 0.15
    assert (order.batch(0)[0] != order.batch(626)[0]).any()
    assert (order.batch(0)[0] != ExampleOrder(lengths, 16, 1).batch(0)[0]).any()


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_few_lengths_hold_all(length, most):
    padded = padded_length(length, most)
    assert padded == most or (padded >= length and padded % 8 == 0)
    assert padded <= max(16, 1.5 * length)


def test_a_few_programs_are_enough():
    assert sorted({padded_length(length, 512) for length in range(1, 513)}) == [
        16,
        24,
        32,
        48,
        64,
        96,
        128,
        192,
        256,
        384,
        512,
    ]


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_batches_do_not_depend_on_the_number_of_processes(case, process_count):
    alone = take(training(case), 16)
    parts = [take(training(case, process_index=p, process_count=process_count), 16) for p in range(process_count)]
    joined = [{name: np.concatenate([part[i][name] for part in parts]) for name in alone[0]} for i in range(16)]
    assert_same(alone, joined)


def test_going_on_anywhere_equals_never_having_stopped(case):
    straight = take(training(case), 20)
    for step in (1, 7, 12, 13, 19):  # an epoch ends within batch 12
        assert_same(straight[step:], take(training(case), 20 - step, start=step))


@pytest.mark.parametrize("case", [TASKS[0], TASKS[3]], ids=["classification", "span_answering"], indirect=True)
def test_the_order_does_not_depend_on_the_number_of_workers(case, capfd):
    assert_same(take(training(case), 8)[3:], take(training(case, num_workers=2, prefetch=2), 5, start=3))
    assert capfd.readouterr().err == ""


def test_another_seed_or_size_is_another_state(case):
    state = training(case).get_state()
    for change in ({"seed": 4}, {"batch_size": 8}):
        with pytest.raises(DataError, match=next(iter(change))):
            training(case, **change).set_state(state)


def test_examples_of_another_model_are_refused(case):
    with pytest.raises(DataError, match="the examples were made with another length than their batches are to have"):
        training(case, length=LENGTH + 8)


# Preparation


def test_the_tokenizer_knows_sources_and_targets_of_training_and_is_trained_once(tmp_path):
    for name, target in (("train", "xyz"), ("validation", "qqq")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"source": "ab", "target": target, "id": "!"}))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    config = DataConfig(**paths, tokenizer=Characters(), cache_dir=str(tmp_path / "cache"))
    task, lines = TextToText(prefix="to: "), []
    corpus = prepare(config, objective=task, stack="encoder_decoder", report=lines.append)
    assert corpus.tokenizer.alphabet == " :abotxyz"
    assert lines == [
        "train: 1 records",
        "validation: 1 records",
        "training the tokenizer",
        "validation: 1 of 1 records have inputs that are in train, too",
    ]
    again = prepare(config, objective=task, stack="encoder_decoder", report=lines.append)
    assert lines.count("training the tokenizer") == 1
    assert again.train.key == corpus.train.key


# Evaluation


def test_evaluation_shows_every_example_once(case):
    examples = case[2].train
    for batch_size in (1, 7, 64):
        batches = eval_batches(examples, **options_of(case, batch_size=batch_size))
        shown = [batch["example"] for batch in batches]
        assert len(shown) == len(batches) == -(-len(examples) // batch_size)
        assert all(len(numbers) == batch_size for numbers in shown)
        counts = Counter(np.concatenate(shown).tolist())
        counts.pop(-1, None)
        assert counts == Counter(range(len(examples)))
        assert_same(list(batches), list(batches))


# Augmentation


@pytest.mark.parametrize(
    "change", [{"swap": 0.3}, {"delete": 0.4}, {"token_dropout": 0.3}], ids=lambda change: next(iter(change))
)
@pytest.mark.parametrize("case", [TASKS[0], TASKS[4]], ids=["classification", "text_to_text"], indirect=True)
def test_changes_depend_on_seed_epoch_and_example_alone(case, change, tmp_path):
    task, stack, plain = case
    changed = task, stack, corpus_of(tmp_path, task, stack, augmentation=Augmentation(**change))
    assert fingerprint(plain.tokenizer) == fingerprint(changed[2].tokenizer)

    def seen(size, **options):
        steps = 200 // size
        texts = {}
        order = ExampleOrder(changed[2].train.lengths, size, 3)
        for step, batch in enumerate(take(training(changed, batch_size=size, **options), steps)):
            prefix = "encoder_" if stack == "encoder_decoder" else ""
            for row, key in enumerate(zip(*order.batch(step), strict=True)):
                used = batch[f"{prefix}segment_ids"][row] > 0
                texts[tuple(map(int, key))] = batch[f"{prefix}inputs"][row][used].tolist()
        return texts

    small, large = seen(4), seen(20)
    assert small == large
    assert len({tuple(small[5, epoch]) for epoch in range(4)}) > 1
    assert_same(take(training(changed), 9)[6:], take(training(changed), 3, start=6))
    parts = [take(training(changed, process_index=p, process_count=2), 8) for p in range(2)]
    joined = [{name: np.concatenate([part[i][name] for part in parts]) for name in parts[0][0]} for i in range(8)]
    assert_same(take(training(changed), 8), joined)
    assert_same(
        list(eval_batches(changed[2].train, **options_of(changed))), list(eval_batches(plain.train, **options_of(case)))
    )
