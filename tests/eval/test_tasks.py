"""Predictions against computations by hand, in any batches and on any mesh; what is stored against itself."""

import functools
import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import task_runs

from data.config import DataConfig, Files, HuggingFace
from data.examples import Column, make_examples
from data.pipeline import eval_batches
from data.tagging import spans_from_tags
from data.task_batches import TaskBatchMaker
from eval import generate, results
from eval.__main__ import main as evaluate
from eval.evaluators import term_measures
from eval.predictions import predictions
from eval.report import write_report
from eval.scores import score
from eval.span_answers import Window, best_span, no_answer_score
from eval.task_measures import measures, words
from eval.task_texts import decode
from eval.tasks import _with_records, examples_of, predict, task_evaluator
from train import sharding
from train.__main__ import main as train
from train.config import Decoding, Mesh, UserError
from train.objective import Term, coefficients, example_options, model_inputs
from train.run import load_run
from train.step import eval_step

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


def batches_of(run, examples, batch_size):
    return eval_batches(examples, tokenizer=run.tokenizer, batch_size=batch_size, **example_options(run.config))


def losses_of(run, examples):
    """The measures of the loss, by one batch."""
    [batch] = batches_of(run, examples, len(examples))
    terms = jax.jit(partial(eval_step, model=run.model, experiment=run.config))(run.params, batch)
    return term_measures({name: Term(*map(float, term)) for name, term in terms.items()}, coefficients(run.config))


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
    for record in (0, len(examples.records) - 1):
        rows = [examples.row(number) for number in np.flatnonzero(examples.record_of == record)]
        outputs = []
        for row in rows:
            inputs = row["inputs"][None]
            sentences = row.get("sentence_ids", np.zeros_like(inputs[0]))[None]
            outputs.append(jax.tree.map(np.asarray, apply(inputs, np.ones_like(inputs), sentences)))
        logits, answer, fields = outputs[0], found[record], examples.records[record].fields
        if kind == "classification":
            exponents = np.exp(np.float64(logits["sequence"][0]))
            np.testing.assert_allclose([*answer["probabilities"].values()], exponents / exponents.sum(), rtol=1e-4)
            assert answer["predicted"] == ["bad", "good"][exponents.argmax()]
        elif kind == "regression":
            assert answer["predicted"] == pytest.approx(float(np.clip(logits["sequence"][0, 0], 0, 5)), abs=1e-5)
        elif kind == "tagging":
            names = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
            ids = [part["tokens"][0].argmax(-1) for part in outputs]
            tags = [names[i] for row, part in zip(rows, ids, strict=True) for i in part[row["words"] >= 0]]
            assert answer["predicted"] == [list(span) for span in spans_from_tags(tags, "conlleval")]
        else:
            windows, places = [], {}  # place among the context's tokens → its characters
            for row, part in zip(rows, outputs, strict=True):
                is_context, first = row["starts"] >= 0, int(row["first"][0])
                windows.append(Window(first, *part["span"][0][is_context].T.astype(float), 0.0))
                characters = zip(row["starts"][is_context], row["ends"][is_context], strict=True)
                places |= enumerate(characters, first)
            score, first, last = best_by_hand(windows, 30)
            assert answer["score"] == pytest.approx(score, abs=1e-4)
            assert answer["predicted"] == fields["context"][places[first][0] : places[last][1]]


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


def best_by_hand(windows, most):
    """The highest sum of two logits, and the places of the two: the first in the window where it sees most."""

    def context(window, place):
        count = len(window.starts)
        return min(place - window.first, window.first + count - 1 - place) + 0.01 * count

    best = (-np.inf, 0, 0)
    for number, window in enumerate(windows):
        for i in range(len(window.starts)):
            holders = [n for n, w in enumerate(windows) if 0 <= window.first + i - w.first < len(w.starts)]
            if number != max(holders, key=lambda n: (context(windows[n], window.first + i), -n)):
                continue
            for j in range(i, min(i + most, len(window.starts))):
                best = max(best, (window.starts[i] + window.ends[j], window.first + i, window.first + j))
    return best


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
        span = best_span(windows, most)
        assert span.score == pytest.approx(best_by_hand(windows, most)[0]) and 0 <= span.last - span.first < most
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


def test_the_command_writes_what_is_scored(source_run, monkeypatch, capsys):
    """It reads a prompt as training reads a source: cleaned, after the prefix, in the template."""
    run, examples, _ = source_run
    expected = [prediction["predicted"] for prediction in predicted(run, examples)]
    monkeypatch.setattr("train.run.load_run", lambda *_: run)
    sources = [record.fields["source"] for record in examples.records]
    prompts = [argument for source in sources for argument in ("--prompt", f" {source}\n")]
    for method in (["--greedy"], ["--beam-size", "1"]):
        assert generate.main(["RUN", *prompts, *method, "--max-new-tokens", "8", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [text["text"].strip() for text in found] == expected and found[0]["prompt"] == " z\n"
    assert generate.main(["RUN", "--prompt", "z" * 99, "--max-new-tokens", "99", "--json"]) == 0
    captured = capsys.readouterr()
    assert "of prompt 1 do not fit and are not read" in captured.err
    assert json.loads(captured.out)[0]["tokens"] <= 48


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
    loss = losses_of(run, examples)
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
    loss = losses_of(run, examples)
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


def test_replies_are_scored_for_the_batches_that_are_shown(runs):
    run, examples = runs("dialogue")
    evaluation = run.config.evaluation.model_copy(update={"metric": "distinct_1", "max_batches": 1})
    config = run.config.model_copy(update={"evaluation": evaluation, "seed": 2**32 + 7})
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    measured = task_evaluator(config, examples, run.tokenizer, mesh=mesh, max_batches=1)(run.params)
    first = sorted(n for n in next(iter(batches_of(run, examples, 4)))["example"] if n >= 0)
    assert len(first) == 4 < len(examples.records)
    records = [examples.records[examples.record_of[n]] for n in first]
    some = make_examples(config.data, "test", records, config.objective, run.tokenizer, stack="decoder")
    found = measures(config.objective, predicted(replace(run, config=config), some))
    assert {"distinct_1", "distinct_2", "repetition_4"} < {measure.name for measure in found}
    for measure in found:
        assert measured[measure.name] == pytest.approx(measure.value, rel=1e-4)


def test_predictions_outlive_what_fails_after_them(runs, tmp_path, monkeypatch, capsys):
    run, _ = runs("regression")

    def fail(*_):
        raise UserError("no such score")

    folder = results.folder_of(run, "validation")
    with monkeypatch.context() as patched:
        patched.setattr(results, "measures", fail)
        assert "no such score" in refused([run.directory], capsys)
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 9 and results.read(folder) is None
    config = task_runs.experiment(tmp_path, "regression")
    (tmp_path / "own.jsonl").write_bytes((tmp_path / "regression.jsonl").read_bytes())
    bare = task_runs.write_run(config)
    (tmp_path / "regression.jsonl").unlink()
    assert evaluate([str(bare), "--records", str(tmp_path / "own.jsonl")]) == 0
    captured = capsys.readouterr()
    assert "overlap  unknown" in captured.out and "overlap with training is unknown: " in captured.err
    assert results.read(bare / "evaluation" / "records-own.jsonl-0")[0]["overlap with training"] is None


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


def test_own_records_are_read_as_the_runs_are(tmp_path, capsys):
    plain = {"kind": "files", "path": str(tmp_path / "classification.jsonl"), "on_error": "skip"}
    run = task_runs.write_run(task_runs.experiment(tmp_path, "classification", train=[plain], test=[]))
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "a", "label": "good"}\n{"text": "a", "label": "god"}\n')
    assert evaluate([str(run), "--records", str(own), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 1
    assert "--records needs the name of a file" in refused([run, "--records", ""], capsys)
    hub = HuggingFace(path="x", fields={"text": "body"}, replace={"label": {"^1$": "good"}})
    [like] = _with_records(DataConfig(train=(hub,)), "own.jsonl").test
    assert (like.path, like.fields, like.replace) == ("own.jsonl", hub.fields, hub.replace)
    [like] = _with_records(DataConfig(train=(Files(path="a.tsv"),)), "own.jsonl").test
    assert like.on_error == "fail"


def test_texts_begin_with_the_first_token(runs, capsys):
    run, _ = runs("text_to_text")
    assert evaluate([str(run.directory), "--split", "test", "--first-token", "Q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["decoding"]["first_token"] == "Q"
    _, found = results.read(run.directory / "evaluation" / "test-0")
    assert all(prediction["predicted"][0] == "Q" for prediction in found)
    assert evaluate([str(run.directory), "--split", "test", "--first-token", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["decoding"]["first_token"] is None
    assert "the tokenizer has no token 'de_DE'" in refused([run.directory, "--first-token", "de_DE"], capsys)
    wrong = run.config.evaluation.model_copy(update={"decoding": Decoding(first_token="de_DE")})
    with pytest.raises(UserError, match="no token 'de_DE'"):
        task_evaluator(
            run.config.model_copy(update={"evaluation": wrong}), runs("text_to_text")[1], run.tokenizer,
            mesh=sharding.make_mesh(Mesh(), jax.devices()[:1]),
        )  # fmt: skip


def test_mistakes(runs, tiny_run, tmp_path, capsys):
    directory = runs("classification")[0].directory
    assert "--text: for runs of language models alone" in refused([directory, "--text", "a.txt"], capsys)
    assert "--split: for runs of tasks alone" in refused([tiny_run, "--split", "test"], capsys)
    assert "--beam-size: for runs that write texts alone" in refused([directory, "--beam-size", "4"], capsys)
    assert "--beam-size, --length-penalty: for runs that write texts alone" in refused(
        [tiny_run, "--beam-size", "4", "--length-penalty", "x"], capsys
    )
    texts = runs("text_to_text")[0].directory
    assert "--length-penalty, --coverage-penalty: of a beam search alone" in refused(
        [texts, "--length-penalty", "2", "--coverage-penalty", "1"], capsys
    )
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
