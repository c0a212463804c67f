"""A run that is killed and continued is the run that was never interrupted."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny

from data.tokenizer import ByteTokenizer
from train.checkpoint import list_steps, read_manifest
from train.command_line import read_config
from train.config import UserError
from train.metrics import read_metrics
from train.run import RunDirectory

FILE = str(Path(tiny.__file__))

KILL_AT = """
import os, signal
from train import loop
log = loop.Trainer._log
def killing(self, step, *rest):
    log(self, step, *rest)
    if step == {step}:
        self.checkpoints.wait()
        os.kill(os.getpid(), signal.{signal})
loop.Trainer._log = killing
"""


def losses(run: Path) -> dict[int, float]:
    lines = [line for line in read_metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


def digests(run: Path, step: int = 40) -> dict:
    """SHA-256 of every array of the final state."""
    return read_manifest(run / "checkpoints", step)["arrays"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A folder with two uninterrupted runs in it."""
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_text(folder)
    for variant in ("tiny", "with_everything", "encoder"):
        code, output = tiny.finish(tiny.start(f"{FILE}:{variant}", "--run-dir", str(folder / variant)))
        assert code == 0, output
    return folder


@pytest.mark.parametrize("variant", ["with_everything", "encoder"])
def test_killed_and_continued_is_bitwise_the_same(straight, tmp_path, variant):
    run = tmp_path / "run"
    # With no data-loading process before the kill, and two after it.
    code, _ = tiny.finish(
        tiny.start(f"{FILE}:{variant}", "--run-dir", str(run), patch=KILL_AT.format(step=27, signal="SIGKILL"))
    )
    assert code == -signal.SIGKILL
    assert list_steps(run / "checkpoints") == [20]
    code, output = tiny.finish(tiny.start(f"{FILE}:{variant}", "--run-dir", str(run), "--data.num-workers", "2"))
    assert code == 0, output
    assert "continuing at step 20 of 40" in output
    assert "Traceback" not in output
    assert losses(run) == losses(straight / variant)
    assert digests(run) == digests(straight / variant)


def test_killed_at_any_time_again_and_again(straight, tmp_path):
    """The moments fall in start-up, compilation, steps and saves alike."""
    run, draw = tmp_path / "run", random.Random(0)
    for _ in range(3):
        process = tiny.start(f"{FILE}:tiny", "--run-dir", str(run), "--checkpoint.every", "1")
        try:
            process.communicate(timeout=draw.uniform(2, 6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run)))
    assert code == 0 and "Traceback" not in output, output
    assert losses(run) == losses(straight / "tiny")
    assert digests(run) == digests(straight / "tiny")
    assert not list((run / "checkpoints").glob(".tmp-*"))


def test_continued_on_another_mesh_is_the_same_to_rounding(straight, tmp_path):
    run = tmp_path / "run"
    tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run), patch=KILL_AT.format(step=27, signal="SIGKILL")))
    flags = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run), *flags, devices=8))
    assert code == 0 and "continuing at step 20 of 40" in output, output
    found, expected = losses(run), losses(straight / "tiny")
    assert list(found) == list(expected)
    assert all(found[step] == pytest.approx(expected[step], rel=1e-5) for step in found)


def test_a_polite_signal_saves_and_ends_cleanly(straight, tmp_path):
    run, saved = tmp_path / "run", 0
    for name, expected, step in (("SIGTERM", 75, 13), ("SIGINT", 130, 26)):
        code, output = tiny.finish(
            tiny.start(f"{FILE}:tiny", "--run-dir", str(run), patch=KILL_AT.format(step=step, signal=name))
        )
        assert code == expected, output
        assert "Traceback" not in output
        assert (f"continuing at step {saved} of 40" in output) == (saved > 0)
        (saved,) = [found for found in list_steps(run / "checkpoints") if found >= step]
        assert saved <= step + 3 and f"interrupted by {name}; saved at step {saved}" in output
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run)))
    assert code == 0 and f"continuing at step {saved} of 40" in output
    assert losses(run) == losses(straight / "tiny")
    assert digests(run) == digests(straight / "tiny")


def test_a_finished_run_can_be_started_again(straight):
    before = digests(straight / "tiny")
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(straight / "tiny")))
    assert code == 0, output
    assert digests(straight / "tiny") == before
    config = straight / "tiny" / "config.json"
    code, output = tiny.finish(tiny.start(str(config)))
    assert code == 0, output


def test_another_config_in_the_same_directory_is_refused_with_the_difference(straight):
    run = straight / "tiny"
    before = (run / "config.json").read_bytes()
    code, output = tiny.finish(
        tiny.start(f"{FILE}:tiny", "--run-dir", str(run), "--optimizer.peak-learning-rate", "0.01", "--seed", "3")
    )
    assert code == 2 and "Traceback" not in output
    assert "optimizer.peak_learning_rate: 0.003 in the run, 0.01 now" in output
    assert "seed: 0 in the run, 3 now" in output
    assert (run / "config.json").read_bytes() == before


def test_a_start_that_failed_before_training_protects_nothing(straight, tmp_path):
    run = tmp_path / "run"
    first, second = (tiny.experiment(run_dir=str(run), batch_size=size) for size in (8, 16))
    directory = RunDirectory(first)
    ByteTokenizer().save(run / "tokenizer")
    directory.close()
    directory = RunDirectory(second)
    assert read_config(run / "config.json") == second and not (run / "tokenizer").exists()
    directory.close()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    with pytest.raises(UserError, match="holds a run with another config"):
        RunDirectory(first)
    assert read_config(run / "config.json") == second


def test_a_second_writer_is_refused_and_a_crashed_ones_lock_is_not_in_the_way(straight, tmp_path):
    run = tmp_path / "run"
    patch = KILL_AT.format(step=3, signal="SIGSTOP")  # holds the run directory without moving
    first = tiny.start(f"{FILE}:tiny", "--run-dir", str(run), patch=patch)
    deadline = time.monotonic() + 120
    while len(read_metrics(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run)))
    assert code == 2 and f"is being written by another process (process {first.pid} on" in output
    first.kill()
    first.communicate()
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run)))
    assert code == 0, output
    assert losses(run) == losses(straight / "tiny")


def test_a_run_directory_describes_itself(straight):
    run = straight / "tiny"
    stored = read_config(run / "config.json")
    assert stored == tiny.tiny().model_copy(update=dict(run_dir=str(run)))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["jax"] and environment["devices"] and environment["mesh"]
    assert (run / "tokenizer" / "tokenizer.json").is_file()
    assert list((run / "tensorboard").iterdir())
    (evaluated,) = [line["validation"] for line in read_metrics(run) if line["step"] == 40 and "validation" in line]
    manifest = read_manifest(run / "checkpoints", 40)
    assert manifest["validation"] == evaluated
    assert manifest["next_step"] == 40 and manifest["data"]["next_batch"] == 40


def test_a_new_run_starts_from_another_ones_parameters(straight, tmp_path):
    run = tmp_path / "run"
    flags = ["--init-from", str(straight / "tiny"), "--num-steps", "5"]
    code, output = tiny.finish(tiny.start(f"{FILE}:tiny", "--run-dir", str(run), *flags))
    assert code == 0, output
    assert losses(run)[1] < losses(straight / "tiny")[1] - 0.5


def test_hopeless_training_stops_with_its_cause(straight, tmp_path):
    run = tmp_path / "run"
    patch = """
from train import sharding
place = sharding.place_batch
def poisoned(batch, sharding):
    return place(batch | {"weights": batch["weights"] * float("nan")}, sharding)
sharding.place_batch = poisoned
"""
    code, output = tiny.finish(
        tiny.start(f"{FILE}:tiny", "--run-dir", str(run), "--max-nonfinite-steps", "3", patch=patch)
    )
    assert code == 70, output
    assert "Traceback" not in output
    assert "stopped at step 3: loss or gradient was not finite in 3 steps in a row, the first being step 1" in output
