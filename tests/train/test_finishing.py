"""When a run ends and which of its checkpoints counts: patience, the best metric, means of checkpoints, seeds."""

import argparse
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from data.config import MaskedLM
from data.pipeline import prepare
from eval.command_line import add_run
from experiments import start_from
from model import tree
from model.config import TransformerConfig
from train import config as cfg
from train import load_run, loop, params
from train.checkpoint import Checkpoints, list_steps, read_manifest
from train.config import UserError
from train.metrics import evaluations_since_best, read_metrics
from train.objective import make_model
from train.params import restore_common, restore_tokenizer
from train.run import RunDirectory
from train.seeds import final_scores, run_seeds, summary, take_seeds
from train.sharding import make_mesh
from train.step import plan_state

ACCURACIES = {4: 0.5, 8: 0.7, 12: 0.6, 16: 0.7, 20: 0.9, 24: 0.9}


@pytest.fixture(scope="module", autouse=True)
def _text(tmp_path_factory):
    tiny.write_text(tmp_path_factory.mktemp("text"))


def experiment(run, **changes):
    """Low-rank additions to a decoder with dropout, which is measured every fourth of 24 steps."""
    model = tiny.experiment().model.model_copy(update=dict(dropout_rate=0.1, num_layers=1))
    fields = dict(
        run_dir=str(run),
        num_steps=24,
        model=model,
        mesh=cfg.Mesh(data=1),
        tuning=cfg.LoRA(rank=2, also_train=(".*norm/.*",)),
        optimizer=cfg.AdamW(peak_learning_rate=3e-3),
        checkpoint=cfg.Checkpointing(every=8, keep_last=3),
        evaluation=cfg.Evaluation(every=4, sample_tokens=0, metric="accuracy", patience=2),
    )
    return tiny.experiment(**fields | changes)


def train(experiment, evaluate=None, logged=lambda trainer, step: None):
    """Train with accuracies by the step, as ACCURACIES has them; `logged` is called after each step's log."""
    directory, mesh = RunDirectory(experiment), make_mesh(experiment.mesh)
    corpus = prepare(experiment.data)

    class Trainer(loop.Trainer):
        def _log(self, step, *rest):
            super()._log(step, *rest)
            logged(self, step)

    def scripted(params):
        assert not any(name.startswith("lora") for name in tree.named_leaves(params))
        return {"loss": 1.0, "accuracy": ACCURACIES[trainer.next_step]}

    try:
        trainer = Trainer(experiment, directory, corpus, mesh, {"validation": evaluate or scripted})
        trainer.train()
    finally:
        directory.close()


def stop_after(logged):
    """For `train`: a signal when the log of this step is written, which is two steps later or at an evaluation."""

    def stop(trainer, step):
        if step == logged:
            trainer._signal = signal.SIGTERM

    return stop


def digests(run, step):
    return read_manifest(run / "checkpoints", step)["arrays"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that no better accuracy has ended at step 16."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    train(experiment(run))
    return run


def test_a_run_ends_when_patience_does_and_the_best_checkpoint_is_kept(straight):
    assert list_steps(straight / "checkpoints") == [8, 16]  # 4 no longer, as it was only the best
    assert [line["step"] for line in read_metrics(straight) if "loss" in line] == list(range(1, 17))
    assert load_run(straight).step == 16 and load_run(straight, "best").step == 8
    assert read_manifest(straight / "checkpoints", 8)["validation"] == {"loss": 1.0, "accuracy": 0.7}
    before = digests(straight, 16)
    train(experiment(straight))  # it is finished
    assert digests(straight, 16) == before and list_steps(straight / "checkpoints")[-1] == 16


def test_more_patience_goes_on_where_less_had_ended(straight, tmp_path):
    run = tmp_path / "run"
    train(experiment(run))
    train(experiment(run, evaluation=experiment(run).evaluation.model_copy(update=dict(patience=3))))
    assert load_run(run).step == 24 and load_run(run, "best").step == 20  # the earlier of two that are equal


def test_killed_between_evaluations_it_ends_as_if_it_had_not_been(straight, tmp_path):
    run = tmp_path / "run"

    def die(trainer, step):
        if step == 14:
            trainer.checkpoints.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(experiment(run), logged=die)
    assert list_steps(run / "checkpoints") == [8]
    train(experiment(run))
    assert list_steps(run / "checkpoints") == [8, 16] and digests(run, 16) == digests(straight, 16)


def test_a_signal_before_an_evaluation_only_postpones_it(straight, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(loop.Interrupted):
        train(experiment(run), logged=stop_after(10))
    assert read_manifest(run / "checkpoints", 12)["validation"] is None
    train(experiment(run))
    evaluated = [(line["step"], line["validation"]) for line in read_metrics(run) if "validation" in line]
    assert evaluated == [(line["step"], line["validation"]) for line in read_metrics(straight) if "validation" in line]
    assert load_run(run).step == 16 and digests(run, 16) == digests(straight, 16)


def test_a_metric_that_is_not_measured_is_named_and_nothing_lost(tmp_path):
    wrong = cfg.Evaluation(every=4, metric="acuracy")
    with pytest.raises(UserError, match=r"no validation measure 'acuracy'. Did you mean 'accuracy'\? Measures: loss,"):
        train(experiment(tmp_path / "run", evaluation=wrong))
    assert list_steps(tmp_path / "run" / "checkpoints") == [4]


@pytest.mark.parametrize(
    "values, lower, count",
    [
        ([], True, 0),
        ([3.0, 2.0, 1.0], True, 0),
        ([3.0, 2.0, 2.0, float("nan")], True, 2),
        ([0.1, 0.3, 0.2], False, 1),
        ([float("nan"), 0.1], False, 0),
    ],
)
def test_evaluations_since_the_best(values, lower, count):
    assert evaluations_since_best(values, lower) == count


@pytest.mark.parametrize(
    "metric, lower",
    [("loss", True), ("word_perplexity", True), ("expected_calibration_error", True), ("f1", False), ("bleu", False)],
)
def test_what_is_better(metric, lower):
    assert cfg.lower_is_better(metric) == lower


@pytest.mark.parametrize(
    "evaluation, checkpoint, sentence",
    [
        (dict(final="best", average=2), {}, "exclude each other"),
        (dict(final="best"), dict(keep_best=0), "needs checkpoint.keep_best of at least 1, not 0"),
        (dict(average=5), {}, r"evaluation.average=5 is more than the 2 newest checkpoints"),
        (dict(average=2, patience=3), {}, "evaluation.average cannot be of use"),
    ],
)
def test_a_final_checkpoint_that_would_not_be_there_is_refused(evaluation, checkpoint, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.experiment(evaluation=cfg.Evaluation(**evaluation), checkpoint=cfg.Checkpointing(every=20, **checkpoint))


# Means of checkpoints


def to_the_end(run):
    """All 24 steps, of which 8, 16 and 24 are scheduled and 20 is the best; averages of one of two layers."""
    return experiment(
        run,
        model=experiment(run).model.model_copy(update=dict(num_layers=2)),
        tuning=cfg.LastLayers(count=1),
        evaluation=cfg.Evaluation(every=4, metric="accuracy", average=3, sample_tokens=0),
        ema_decay=0.5,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(to_the_end(run))
    return run


def test_a_mean_depends_neither_on_interruptions_nor_on_which_were_the_best(whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(loop.Interrupted):
        train(to_the_end(run), logged=stop_after(19))
    assert list_steps(run / "checkpoints") == [8, 16, 20, 21] and load_run(run).step == 21
    train(to_the_end(run))
    assert list_steps(run / "checkpoints") == list_steps(whole / "checkpoints") == [8, 16, 20, 24]
    for step in (8, 16, 20, 24):
        assert digests(run, step) == digests(whole, step)
    found, expected = (load_run(which, "average:3").params for which in (run, whole))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    steps = [load_run(whole, step).params for step in (24, 16, 8)]
    mean = jax.tree.map(lambda *x: np.mean(np.array(x, np.float64), axis=0), *steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, mean)


def test_an_average_is_the_mean_of_the_newest_checkpoints_merged(straight):
    def params(step):
        return jax.tree.map(lambda x: np.array(x, np.float64), load_run(straight, step).params)

    found = load_run(straight, "average:2")
    assert (found.step, found.averaged, found.validation_loss) == (16, 2, None)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, params(16), params(8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found.params, expected)
    assert "lora" not in found.params
    with pytest.raises(UserError, match=r"has 2 checkpoint\(s\) to average, not 3: \[8, 16\]"):
        load_run(straight, "average:3")


def test_a_damaged_checkpoint_is_not_averaged(whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "checkpoints" / "16" / "config.json").write_text("{}")
    expected = jax.tree.map(lambda a, b: (a + b) / 2, load_run(run, 24).params, load_run(run, 8).params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), load_run(run, "average:2").params, expected)
    assert "checkpoint 16 does not verify" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has 2 checkpoint\(s\) to average, not 3"):
        load_run(run, "average:3")


def test_steps_that_a_user_may_name(capsys):
    parser = argparse.ArgumentParser()
    add_run(parser)
    for text, step in {"latest": "latest", "best": "best", "12": 12, "average:5": "average:5"}.items():
        assert parser.parse_args(["run", "--step", text]).step == step
    for text in ("average:0", "average:", "first"):
        with pytest.raises(SystemExit):
            parser.parse_args(["run", "--step", text])


# Starting from another run


def test_a_run_starts_from_the_merged_parameters_of_another(straight, tmp_path):
    """Of a LoRA run, for a plain one and for another LoRA run, whose additions are new."""
    merged = load_run(straight).params
    for tuning in (cfg.Full(), cfg.LoRA(rank=4)):
        run = tmp_path / tuning.kind
        changes = dict(tuning=tuning, init_from=str(straight), num_steps=1, evaluation=cfg.Evaluation(every=4))
        changes |= dict(ema_decay=0.5)
        chosen = experiment(run, **changes, optimizer=cfg.SGD(peak_learning_rate=1e-30))
        train(chosen, evaluate=lambda params: {"loss": 1.0})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-20), load_run(run).params, merged)


def test_a_tokenizer_is_read_without_the_model(straight, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(straight, tmp_path / "run")
    (run / "checkpoints" / "16" / "config.json").write_text("{}")
    monkeypatch.setattr(params, "restore_group", None)
    assert restore_tokenizer(run / "checkpoints").vocab_size == 260
    assert "checkpoint 16 does not verify" in capsys.readouterr().err


def test_a_head_of_another_size_is_new_and_said_to_be(tmp_path, capsys):
    def state(heads, labels):
        sizes = tiny.SIZES | dict(vocab_size=261, stack="encoder", pooler="tanh", num_layers=1)
        model = TransformerConfig(**sizes, heads=heads, num_labels=labels)
        chosen = tiny.experiment(model=model, objective=MaskedLM(), mesh=cfg.Mesh(data=1), seed=labels)
        plan = plan_state(make_model(chosen), chosen, make_mesh(chosen.mesh))
        return plan.init_state(), plan, chosen

    old, _, chosen = state(("lm", "sequence"), 2)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(chosen.model_dump_json())
    checkpoints = Checkpoints(run / "checkpoints", keep_last=1, keep_best=0, verify=True)
    checkpoints.save(old, data={}, validation=None, write_extras=lambda folder: None)
    checkpoints.wait()
    new, plan, _ = state(("sequence", "tokens"), 3)
    params, fresh, unused = restore_common(run / "checkpoints", new.params, plan.shardings.params)
    assert fresh == [f"heads/{head}/{leaf}" for head in ("sequence", "tokens") for leaf in ("bias", "kernel")]
    assert unused == []  # the masked words' head is tied and has no parameters
    np.testing.assert_array_equal(params["heads"]["sequence"]["kernel"], new.params["heads"]["sequence"]["kernel"])
    np.testing.assert_array_equal(params["heads"]["pooler"]["kernel"], old.params["heads"]["pooler"]["kernel"])
    changed = start_from(str(run), heads=("sequence",), num_labels=7)
    assert (changed.heads, changed.num_labels, changed.pooler) == (("sequence",), 7, "tanh")
    with pytest.raises(UserError, match=r"no run runs/some-bert .*: python -m model.pretrained import FOLDER runs/s"):
        start_from("runs/some-bert")


# Seeds


def fake_run(failing=None):
    """Stands for training: writes the scores of a seed, remembers which it was asked for."""
    asked = []

    def run(experiment):
        asked.append(experiment.seed)
        if experiment.seed == failing:
            return 70
        folder = Path(experiment.directory) / "evaluation" / "test-5"
        folder.mkdir(parents=True)
        scores = [{"name": "accuracy", "value": experiment.seed / 10}, {"name": "pearson", "value": None}]
        (folder / "scores.json").write_text(json.dumps({"split": "test", "scores": scores}))
        return 0

    return run, asked


def test_seeds_are_run_once_and_summed_up(tmp_path, capsys):
    chosen = tiny.experiment(run_dir=str(tmp_path / "run"), seed=3)
    run, asked = fake_run(failing=5)
    assert run_seeds(chosen, 3, run) == 70
    assert "seed 5 ended with exit code 70" in capsys.readouterr().err
    run, asked = fake_run()
    assert run_seeds(chosen, 3, run) == 0 and asked == [5]
    stored = json.loads((tmp_path / "run" / "seeds.json").read_text())["summary"]["test"]
    assert stored["accuracy"] == pytest.approx(
        {"mean": 0.4, "standard_deviation": 0.1, "values": pytest.approx([0.3, 0.4, 0.5])}
    )
    assert stored["pearson"]["mean"] is None
    assert "test   accuracy  0.4000     0.1000     0.3000  0.4000  0.5000\n" in capsys.readouterr().out
    run, asked = fake_run()
    watched = chosen.model_copy(update=dict(log_every=7, checkpoint=cfg.Checkpointing(keep_last=5)))
    assert run_seeds(watched, 3, run) == 0 and asked == []  # it would come out the same
    for changes in (dict(num_steps=41), dict(evaluation=cfg.Evaluation(every=5))):
        run, asked = fake_run()
        with pytest.raises(FileExistsError):  # another experiment: nothing is taken for finished
            run_seeds(chosen.model_copy(update=changes), 3, run)
        assert asked == [3]


def test_the_spread_is_that_of_a_sample():
    found = summary([{"test": {"f1": x}} for x in (0.1, 0.2, 0.6)])["test"]["f1"]
    assert found["mean"] == pytest.approx(0.3) and found["standard_deviation"] == pytest.approx(
        np.std([1, 2, 6], ddof=1) / 10
    )


def test_scores_that_only_later_runs_have_are_listed_too():
    found = summary([{"test": {"f1": 0.5}}, {"validation": {"f1": 0.2}, "test": {"f1": 0.7, "recall": 0.4}}])
    assert {split: list(scores) for split, scores in found.items()} == {"test": ["f1", "recall"], "validation": ["f1"]}
    assert found["test"]["f1"]["mean"] == pytest.approx(0.6)
    assert found["test"]["recall"] == {"mean": None, "standard_deviation": None, "values": [None, 0.4]}


def test_a_damaged_list_of_seeds_is_named(tmp_path):
    for text in ('{"config": ', "[]", "{}"):
        (tmp_path / "seeds.json").write_text(text)
        with pytest.raises(UserError, match=r"seeds.json is damaged; delete it"):
            run_seeds(tiny.experiment(run_dir=str(tmp_path)), 2, fake_run()[0])


def test_a_run_without_scores_has_the_measures_of_its_final_checkpoint(whole):
    last = to_the_end(whole)
    best = last.model_copy(update=dict(evaluation=cfg.Evaluation(final="best", metric="accuracy")))
    seen = [line["validation"] for line in read_metrics(whole) if "validation" in line]
    assert final_scores(last) == {"validation": seen[-1]}
    assert final_scores(best) == {"validation": read_manifest(whole / "checkpoints", 20)["validation"]}
    with pytest.raises(UserError, match="--seeds: evaluation.average is scored for tasks alone"):
        run_seeds(last, 2, fake_run()[0])


def test_seeds_on_the_command_line():
    assert take_seeds(["x", "--seeds", "5", "--num-steps", "3"]) == (["x", "--num-steps", "3"], 5)
    assert take_seeds(["x", "--seeds=5", "--name=y"]) == (["x", "--name=y"], 5)
    assert take_seeds(["x"]) == (["x"], None)
    for wrong in (["x", "--seeds"], ["x", "--seeds="], ["x", "--seeds", "one"], ["x", "--seeds", "1"]):
        with pytest.raises(UserError, match="--seeds: expected a number of seeds, at least 2"):
            take_seeds(wrong)


# Speed


def test_speed_counts_neither_compilation_nor_evaluation(monkeypatch):
    """Batches have several shapes: the step that compiles one is not timed, and FLOPs are those of each length."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    clock = loop._Clock(elapsed=100.0)

    def compiles(seconds):
        with clock.stopped():
            now[0] += seconds
        clock.step(1e6, None)

    compiles(50.0)
    assert clock.lap() is None
    for tokens, flops in ((10.0, 2.0), (30.0, 3.0)):
        now[0] += 1.0
        clock.step(tokens, flops)
    compiles(20.0)
    with clock.stopped():
        now[0] += 7.0
    assert clock.lap() == pytest.approx((20.0, 55.0))
    assert clock.lap() is None and clock.elapsed == pytest.approx(179.0)
