"""`python -m model.pretrained`: a folder becomes a run that generates, trains and becomes the same folder again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from model.pretrained import read_model
from model.pretrained.__main__ import main
from train import load_run
from train.checkpoint import Checkpoints
from train.config import RULES, Mesh, UserError
from train.objective import make_model
from train.sharding import make_mesh, parameter_specs
from train.step import plan_state

ROOT = Path(__file__).parents[3]
FIXTURES = Path(__file__).parent / "fixtures"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"the of and to in a is it for on as with by at".split()]


@pytest.fixture
def bert(tmp_path):
    """A tiny BERT with a vocabulary, as one finds them."""
    folder = shutil.copytree(FIXTURES / "bert", tmp_path / "bert", ignore=shutil.ignore_patterns("*.npz"))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    return folder


def mistake(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_there_and_back_again(bert, tmp_path, capsys):
    assert main(["import", str(bert), str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    assert (run.step, run.config.model.stack) == (0, "encoder")
    assert run.tokenizer.encode("The of").tolist() == [5, 6]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "as bert" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (bert, tmp_path / "out"))
    assert {name: x.tobytes() for name, x in before.items()} == {name: x.tobytes() for name, x in after.items()}
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (bert / "vocab.txt").read_bytes()
    kept = json.loads((bert / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= kept.items()


def test_a_name_on_the_hub_is_found_in_its_cache(bert, tmp_path):
    snapshot = tmp_path / "hub" / "models--someone--tiny-bert" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.move(bert, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def run(name):
        command = [sys.executable, "-m", "model.pretrained", "import", name, str(tmp_path / "run")]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    lacking = run("someone/else")
    assert (
        lacking.returncode == 2
        and "no folder someone/else, and the hub does not give a model of that name" in lacking.stderr
    )
    found = run("someone/tiny-bert")
    assert found.returncode == 0, found.stderr
    assert load_run(tmp_path / "run").config.model.stack == "encoder"


def test_a_run_starts_from_an_imported_encoder_with_a_new_head(bert, tmp_path):
    """The encoder with a linear decoder on top: `bert:linear_decoder` at a test's size."""
    assert main(["import", str(bert), str(tmp_path / "run")]) == 0
    text = tmp_path / "text.txt"
    text.write_text("the of and to in a is it for on as with by at\n" * 300)
    flags = {
        "init-from": tmp_path / "run",
        "run-dir": tmp_path / "linear",
        "data.train": text,
        "data.cache-dir": tmp_path / "cache",
        "data.tokenizer.path": tmp_path / "run" / "tokenizer",
        "data.length": 16,
        "num-steps": 3,
        "batch-size": 8,
        "optimizer.schedule.warmup-steps": 0,
    }
    model = load_run(tmp_path / "run").config.model
    for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "mlp_dim", "max_length", "num_sentence_types"):
        flags[f"model.{name.replace('_', '-')}"] = getattr(model, name)
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "train", "bert:linear_decoder", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "newly initialized: head/kernel" in done.stdout
    assert "not used: " in done.stdout and "head/transform/kernel" in done.stdout
    start, end = load_run(tmp_path / "run"), load_run(tmp_path / "linear")
    assert end.params["head"]["kernel"].shape == (model.embed_dim, model.vocab_size)
    table = "token_embedding"
    np.testing.assert_allclose(end.params[table]["embedding"], start.params[table]["embedding"], atol=1e-2)


def test_what_cannot_be_done_is_said(bert, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    assert "full is not empty" in mistake(capsys, "import", bert, tmp_path / "full")
    assert "no folder no folder here" in mistake(capsys, "import", "no folder here", tmp_path / "run")
    assert "is not a run directory" in mistake(capsys, "export", tmp_path, tmp_path / "out")
    (bert / "vocab.txt").unlink()
    assert "vocab.txt" in mistake(capsys, "import", bert, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    assert "pickle" in mistake(capsys, "import", bert, tmp_path / "run")


def test_an_imported_run_is_a_start_and_nothing_to_continue(bert, tmp_path):
    assert main(["import", str(bert), str(tmp_path / "run")]) == 0
    experiment = load_run(tmp_path / "run").config
    plan = plan_state(make_model(experiment), experiment, make_mesh(Mesh(data=1)))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep_last=1, keep_best=0, verify=True)
    with pytest.raises(UserError, match="cannot be continued; start a new run from it with --init-from"):
        checkpoints.restore(plan.abstract, plan.shardings, print)


def test_tensors_go_straight_to_the_devices_that_keep_them(bert):
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))

    def shardings(boxed):
        specs, _ = parameter_specs(boxed, mesh, RULES)
        is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)  # noqa: E731
        return jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs, is_leaf=is_spec)

    _, whole = read_model(bert)
    _, split = read_model(bert, shardings=shardings)
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    kernel = split["encoder"]["layers"]["feed_forward"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, ("fsdp",), ("tensor",))
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
