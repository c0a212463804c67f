"""Predictions against computations by hand, in any batches and on any mesh; what is stored against itself."""

import functools
import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import task_runs

from data.examples import Column
from data.task_batches import TaskBatchMaker
from eval import results
from eval.__main__ import main as evaluate
from eval.evaluators import loss_evaluator
from eval.predictions import predictions
from eval.report import write_report
from eval.scores import score
from eval.span_answers import Window, best_span, no_answer_score
from eval.task_measures import measures, words
from eval.task_texts import decode
from eval.tasks import examples_of, predict, task_evaluator
from train import sharding
from train.__main__ import main as train
from train.config import Decoding, Mesh
from train.objective import model_inputs
from train.run import load_run

KINDS = tuple(task_runs.TASKS)
ENCODERS = KINDS[:4]


@functools.cache
def opened(directory):
    run = load_run(directory)
    return run, examples_of(run, "test", run.config.data, lambda line: None)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """kind → an opened run and its examples."""
    folder = tmp_path_factory.mktemp("tasks")
    directories = {}

    def run(kind):
        if kind not in directories:
            directories[kind] = task_runs.write_run(task_runs.experiment(folder, kind))
        return opened(directories[kind])

    return run


def predicted(run, examples, *, devices=1, **options):
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(run.params, everywhere)
    return predict(run.config, run.model, params, run.tokenizer, examples, mesh=mesh, **options)


def close(a, b):
    """Equal but for rounding, however deep."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
    return a == pytest.approx(b, rel=1e-4, abs=1e-5) if isinstance(a, float) else a == b


# Predictions


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_meshes_change_nothing(kind, runs):
    run, examples = runs(kind)
    found = predicted(run, examples)
    assert len(found) == len(examples.records)
    changes = [{"batch_size": 3}] + [{"devices": 8}] * (kind != "text_to_text")  # texts are written without a mesh
    for other in (predicted(run, examples, **change) for change in changes):
        assert all(close(a, b) for a, b in zip(found, other, strict=True))


@pytest.mark.parametrize("kind", ENCODERS)
def test_outputs_of_encoders_are_read_as_they_are_defined(kind, runs):
    """Against the model on one row at a time, without padding, and the definition in NumPy."""
    run, examples = runs(kind)
    apply = jax.jit(lambda tokens, segments, sentences: run.model.apply(
        {"params": run.params}, tokens, segment_ids=segments, sentence_ids=sentences
    ))  # fmt: skip
    found = predicted(run, examples)
    for number in (0, len(examples) - 1):
        row = examples.row(number)
        inputs = row["inputs"][None]
        logits = apply(inputs, np.ones_like(inputs), row.get("sentence_ids", np.zeros_like(inputs[0]))[None])
        record = examples.record_of[number]
        answer, fields = found[record], examples.records[record].fields
        if kind == "classification":
            exponents = np.exp(np.float64(logits["sequence"][0]))
            np.testing.assert_allclose([*answer["probabilities"].values()], exponents / exponents.sum(), rtol=1e-4)
            assert answer["predicted"] == ["bad", "good"][exponents.argmax()]
        elif kind == "regression":
            assert answer["predicted"] == pytest.approx(float(np.clip(logits["sequence"][0, 0], 0, 5)), abs=1e-5)
        elif kind == "tagging":
            names = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
            tags = [names[i] for i in np.asarray(logits["tokens"][0].argmax(-1))[row["words"] >= 0]]
            own = (examples.record_of[: number + 1] == record).sum() - 1  # words of the sentence's parts before
            before = sum((examples.row(i)["words"] >= 0).sum() for i in range(number - own, number))
            starts = {start for _, start, _ in answer["predicted"]}
            assert {before + i for i, tag in enumerate(tags) if tag[0] == "B"} <= starts
        else:
            assert answer["predicted"] in fields["context"]
            assert len(fields["context"]) > 0 and len(answer["predicted"]) <= 30


def test_a_cut_sentence_is_one_again(runs):
    _, examples = runs("tagging")
    record = int(np.bincount(examples.record_of).argmax())
    assert (examples.record_of == record).sum() > 1
    # B-PER, then I-PER for ever: one entity, over the cuts.
    outputs, is_first = {}, set()
    for number in range(len(examples)):
        tags = np.full(len(examples.row(number)["words"]) + 3, 2)  # rows are longer by their padding
        own = examples.record_of[number]
        if own not in is_first:
            is_first.add(own)
            tags[np.flatnonzero(examples.row(number)["words"] >= 0)[0]] = 1
        outputs[number] = tags
    found = predictions(examples, outputs)
    assert found[record]["predicted"] == [["PER", 0, len(examples.records[record].fields["tokens"])]]
    assert found[record]["expected"][:2] == [["PER", 0, 1], ["LOC", 2, 3]]
    outputs.pop(int(np.flatnonzero(examples.record_of == record)[0]))
    assert len(predictions(examples, outputs)) == len(found) - 1  # of which a part is missing


def test_the_answer_is_found_in_any_window(runs):
    _, examples = runs("span_answering")
    last = int(np.flatnonzero(examples.record_of == examples.record_of[-1]).max())
    assert (examples.record_of == examples.record_of[-1]).sum() > 1
    outputs = {}
    for number in range(len(examples)):
        row = examples.row(number)
        first, final = row["targets"]
        outputs[number] = np.zeros((len(row["inputs"]) + 2, 2))
        if first:
            outputs[number][first, 0] = outputs[number][final, 1] = 5
    found = predictions(examples, outputs)
    assert [prediction["predicted"] for prediction in found] == ["Rhine"] * len(found)
    assert found[-1]["id"] == "q7" and examples.row(last)["first"][0] > 0


def test_spans_by_brute_force():
    random = np.random.default_rng(0)
    for _ in range(50):
        size, room, stride = random.integers(1, 20), random.integers(2, 8), random.integers(1, 5)
        firsts = [f for f in range(0, max(size - room, 0) + stride, stride) if f < size]
        windows = []
        for first in firsts:
            count = min(room, size - first)
            starts, ends = random.normal(size=(2, count)).round(1)
            windows.append(Window(first, starts, ends, float(random.normal())))
        most = int(random.integers(1, 6))

        def context(window, place):
            count = len(window.starts)
            return min(place - window.first, window.first + count - 1 - place) + 0.01 * count

        best = -np.inf
        for number, window in enumerate(windows):
            for i in range(len(window.starts)):
                holders = [n for n, w in enumerate(windows) if 0 <= window.first + i - w.first < len(w.starts)]
                if number != max(holders, key=lambda n: (context(windows[n], window.first + i), -n)):
                    continue
                for j in range(i, min(i + most, len(window.starts))):
                    best = max(best, window.starts[i] + window.ends[j])
        span = best_span(windows, most)
        assert span.score == pytest.approx(best) and 0 <= span.last - span.first < most
        assert no_answer_score(windows) == min(window.null for window in windows)


def test_no_answer_is_an_answer(runs):
    _, examples = runs("span_answering")
    may = examples.objective.model_copy(update={"may_have_no_answer": True})
    examples = replace(examples, encoder=replace(examples.encoder, objective=may))
    outputs = {n: np.zeros((len(examples.row(n)["inputs"]), 2)) for n in range(len(examples))}
    assert all(p["predicted"] and p["no_answer_score"] == 0 for p in predictions(examples, outputs))
    for logits in outputs.values():
        logits[0] = 1
    assert all(p["predicted"] == "" and p["no_answer_score"] == 2 for p in predictions(examples, outputs))


@pytest.mark.parametrize("stack", ["encoder_decoder", "decoder"])
def test_a_text_has_the_score_that_training_gives_it(stack, runs, tmp_path):
    """What is decoded is what was learned: the same tokens before it, seen in the same way."""
    config = task_runs.experiment(
        tmp_path, "text_to_text", model={"stack": stack, "positions": "t5_relative"}, target_length=10
    )
    run = load_run(task_runs.write_run(config))
    examples = examples_of(run, "test", config.data, lambda line: None)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    hypotheses = decode(
        config, run.model, run.params, examples, range(3), Decoding(max_new_tokens=8), mesh=mesh, batch_size=2
    )
    ids = [np.array([*best.tokens, *[run.tokenizer.eos_id] * best.finished], np.int32) for best in hypotheses]
    forced = replace(
        examples, columns=examples.columns | {"targets": Column.of([*ids, *ids[:1] * (len(examples) - 3)])}
    )
    batch = TaskBatchMaker(forced, False).batch(np.arange(3), np.zeros(3, int))
    logits = jax.jit(partial(run.model.apply, {"params": run.params}))(**model_inputs(run.model, batch))
    prefix = "decoder_" if stack == "encoder_decoder" else ""
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch[f"{prefix}targets"][..., None], -1)[..., 0]
    expected = (log_p * batch[f"{prefix}weights"]).sum(1)
    np.testing.assert_allclose([best.score for best in hypotheses], expected, rtol=1e-4)


def test_words_stand_for_labels(runs):
    run, examples = runs("text_to_text")
    found = predicted(run, examples)
    assert found[0]["expected"] == ["1"] and all(isinstance(p["predicted"], str) for p in found)
    words = {"label": found[0]["predicted"]}
    config = run.config.model_copy(update={"objective": run.config.objective.model_copy(update={"words": words})})
    again = predicted(
        replace(run, config=config), replace(examples, encoder=replace(examples.encoder, objective=config.objective))
    )
    assert again[0]["predicted"] == "label"


def test_the_nats_of_a_conversation_are_those_of_its_replies(runs):
    run, examples = runs("dialogue")
    found = predicted(run, examples)
    total = sum(p["nats"] for p in found), sum(p["tokens"] for p in found)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    loss = loss_evaluator(run.config, examples, run.tokenizer, mesh=mesh)(run.params)
    assert total[0] / total[1] == pytest.approx(loss["loss"], rel=1e-4) and total[1] == loss["tokens"]
    assert found[0]["words"] == len("Hello you No 0.".split()) and isinstance(found[0]["predicted"], str)
    assert words("你好 world, 再见") == ["你", "好", "world,", "再", "见"]


# Scores


@pytest.mark.parametrize("kind", KINDS)
def test_stored_predictions_have_the_stored_scores(kind, runs, capsys):
    run, _ = runs(kind)
    assert evaluate([str(run.directory), "--split", "test", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    result, found = results.read(run.directory / "evaluation" / "test-0")
    assert told == result and result["split"] == "test" and result["step"] == 0
    assert result["overlap with training"] == result["records"] == len(found)
    again = [score(measure).as_json() for measure in measures(run.config.objective, found)]
    assert again == result["scores"] and all(s["protocol"] and s["examples"] for s in again)
    assert result["protocol"]["task"] == run.config.objective.model_dump(mode="json")
    if kind == "classification":
        for name in ("confusion.png", "reliability.png"):
            assert (run.directory / "evaluation" / "test-0" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["classification", "span_answering"])
def test_validation_has_the_scores_of_prediction_and_the_loss(kind, runs):
    run, examples = runs(kind)
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    measured = task_evaluator(run.config, examples, run.tokenizer, mesh=mesh)(run.params)
    loss = loss_evaluator(run.config, examples, run.tokenizer, mesh=mesh)(run.params)
    assert {name: measured[name] for name in loss} == pytest.approx(loss, rel=1e-5)
    for measure in measures(run.config.objective, predicted(run, examples)):
        assert measured[measure.name] == pytest.approx(measure.value, rel=1e-4)
    few = task_evaluator(run.config, examples, run.tokenizer, mesh=mesh, max_batches=1)(run.params)
    assert few.keys() <= measured.keys() and few["loss"] != measured["loss"]


def test_texts_are_written_in_training_only_where_they_are_asked_for(runs):
    run, examples = runs("text_to_text")
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    assert "bleu" not in task_evaluator(run.config, examples, run.tokenizer, mesh=mesh)(run.params)
    wanted = run.config.model_copy(update={"evaluation": run.config.evaluation.model_copy(update={"metric": "bleu"})})
    measured = task_evaluator(wanted, examples, run.tokenizer, mesh=mesh)(run.params)
    assert measured["bleu"] == measures(run.config.objective, predicted(run, examples))[0].value


# The command


def refused(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        evaluate([str(argument) for argument in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_the_page_shows_scores_pictures_and_predictions(runs, capsys):
    run, _ = runs("classification")
    evaluate([str(run.directory), "--split", "test"])
    page = write_report(run.directory, None).read_text("utf-8")
    assert "Scores on test" in page and "calibration_error" in page and page.count("data:image/png") >= 2
    assert "Right predictions" in page and "It is very good." in page


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_training_ends_with_scores(kind, tmp_path, capsys):
    config = task_runs.experiment(tmp_path, kind)
    path = tmp_path / "experiment.json"
    path.write_text(config.model_dump_json())
    assert train([str(path), "--mesh.data", "1"]) == 0
    told = capsys.readouterr().out
    for split in ("validation", "test"):
        result, found = results.read(tmp_path / kind / "evaluation" / f"{split}-2")
        assert len(found) == result["records"] and result["scores"][0]["name"] in told
    assert evaluate(["compare", str(tmp_path / kind), str(tmp_path / kind), "--split", "test"]) == 0


def test_own_records_and_other_decoding(runs, tmp_path, capsys):
    run, examples = runs("text_to_text")
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"source": "zz", "target": ["bb", "b"]}) + "\n")
    assert evaluate([str(run.directory), "--records", str(own), "--beam-size", "2", "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr().out
    assert "beam_size 2" in shown and "1 of records-own.jsonl" in shown and "bootstrap over examples" in shown
    _, [prediction] = results.read(run.directory / "evaluation" / "records-own.jsonl-0")
    assert prediction["expected"] == ["bb", "b"] and prediction["source"] == "zz"


def test_mistakes(runs, tiny_run, tmp_path, capsys):
    directory = runs("classification")[0].directory
    assert "--text: for runs of language models alone" in refused([directory, "--text", "a.txt"], capsys)
    assert "--split: for runs of tasks alone" in refused([tiny_run, "--split", "test"], capsys)
    assert "--beam-size: for runs that write texts alone" in refused([directory, "--beam-size", "4"], capsys)
    texts = runs("text_to_text")[0].directory
    assert "--beam-size: input should be greater than 0" in refused([texts, "--beam-size", "0"], capsys)
    assert "--split and --records exclude each other" in refused(
        [directory, "--split", "test", "--records", "a.jsonl"], capsys
    )
    assert "none.jsonl" in refused([directory, "--records", tmp_path / "none.jsonl"], capsys)
    assert "--batch-size must be at least 1" in refused([directory, "--batch-size", "0"], capsys)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "a", "label": "god"}\n')
    assert "wrong.jsonl:1: the label 'god' is none of 'bad', 'good'" in refused([directory, "--records", wrong], capsys)
    bare = task_runs.write_run(
        task_runs.experiment(tmp_path, "classification", test=[], validation=[], held_out_fraction=0)
    )
    assert "names no test records" in refused([bare, "--split", "test"], capsys)
    assert "has no validation records" in refused([bare], capsys)
