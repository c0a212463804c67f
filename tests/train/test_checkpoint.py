"""What is saved is what is restored, or it is refused."""

import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
import tiny

from data.tokenizer import ByteTokenizer
from model.transformer import Decoder
from train import config as cfg
from train import load_run
from train.checkpoint import Checkpoints, read_manifest, scheduled_steps, write_manifest
from train.config import UserError
from train.sharding import make_mesh
from train.step import plan_state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory with the states of steps 10, 20 and 30; and what is needed to restore them."""
    folder = tmp_path_factory.mktemp("run")
    tiny.write_text(folder)
    experiment = tiny.experiment(mesh=cfg.Mesh(data=1, fsdp=2), ema_decay=0.5, run_dir=str(folder))
    (folder / "config.json").write_text(experiment.model_dump_json())
    plan = plan_state(Decoder(experiment.model), experiment, make_mesh(experiment.mesh))
    state, shardings = plan.init_state(), plan.shardings
    states = {}
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=3, keep_best=0, verify=True)
    for step in (10, 20, 30):
        states[step] = _shift(state, step)
        _save(checkpoints, states[step], loss=1.0 / step)
    checkpoints.wait()
    return folder, states, shardings


def _shift(state, step):
    changed = jax.tree.map(lambda x: x + np.asarray(step, x.dtype), state)
    return changed.replace(next_step=state.next_step + step)


def _save(checkpoints, state, loss=None, **options):
    validation = None if loss is None else {"loss": loss}
    checkpoints.save(
        state, data={}, validation=validation, write_extras=lambda f: ByteTokenizer().save(f / "tokenizer"), **options
    )


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may damage."""
    folder, states, shardings = made
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", states, shardings


def restore(run, shardings, states, verify=True, said=None):
    checkpoints = Checkpoints(run / "checkpoints", keep_last=3, keep_best=0, verify=verify)
    abstract = jax.eval_shape(lambda s: s, states[10])
    return checkpoints.restore(abstract, shardings, (said if said is not None else []).append)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b))


def test_restoring_gives_the_saved_state_where_it_was(run):
    folder, states, shardings = run
    said = []
    state, manifest = restore(folder, shardings, states, said=said)
    assert_same(state, states[30])
    assert manifest["next_step"] == 30 and not said
    assert all(x.sharding == s for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True))


def test_any_flipped_bit_is_found_and_the_step_before_taken(run):
    folder, states, shardings = run
    files = [p for p in sorted((folder / "checkpoints" / "30").rglob("*")) if p.is_file() and p.stat().st_size]
    draw = random.Random(0)
    for i in range(60):
        path = files[i % len(files)]
        intact = path.read_bytes()
        damaged = bytearray(intact)
        damaged[draw.randrange(len(intact))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        loaded = load_run(folder)
        assert loaded.step == 20, path
        assert_same(loaded.params, states[20].ema)
        path.write_bytes(intact)
    assert load_run(folder).step == 30


def test_training_sets_a_damaged_step_aside_by_name(run):
    folder, states, shardings = run
    path = next((folder / "checkpoints" / "30" / "params" / "d").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    said = []
    state, _ = restore(folder, shardings, states, said=said)
    assert_same(state, states[20])
    assert len(said) == 1 and "checkpoint 30 does not verify" in said[0] and path.name in said[0]
    assert (folder / "checkpoints" / "30.damaged").is_dir()
    assert not (folder / "checkpoints" / "30").exists()


@pytest.mark.parametrize("damage", ["missing file", "extra file", "no manifest", "other step's manifest"])
def test_other_damage_is_found_too(run, damage, capsys):
    folder, states, _ = run
    newest = folder / "checkpoints" / "30"
    if damage == "missing file":
        (newest / "optimizer" / "manifest.ocdbt").unlink()
    elif damage == "extra file":
        (newest / "params" / "d" / "stray").write_text("x")
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        shutil.copy(folder / "checkpoints" / "20" / "manifest.json", newest)
    assert load_run(folder).step == 20
    assert "checkpoint 30 does not verify" in capsys.readouterr().err


def test_an_array_that_differs_from_what_was_in_memory_is_found(run):
    """Files intact, contents wrong: as if memory had changed between the digest and the write."""
    folder, states, shardings = run
    manifest = read_manifest(folder / "checkpoints", 30)
    name = next(iter(manifest["arrays"]["params"]))
    manifest["arrays"]["params"][name]["sha256"] = "0" * 64
    write_manifest(folder / "checkpoints" / "30", manifest)
    said = []
    state, _ = restore(folder, shardings, states, said=said)
    assert_same(state, states[20])
    assert f"array params/{name} differs from what was saved" in said[0]


def test_with_nothing_verifiable_a_run_refuses_to_start_from_zero(run):
    folder, states, shardings = run
    for step in (10, 20, 30):
        (folder / "checkpoints" / str(step) / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="refusing to start from zero"):
        restore(folder, shardings, states)
    assert len(list((folder / "checkpoints").iterdir())) == 3
    with pytest.raises(UserError, match="checkpoint 10 does not verify"):
        load_run(folder)


def test_no_checkpoint_at_all_is_a_new_run(tmp_path, made):
    _, states, shardings = made
    assert restore(tmp_path, shardings, states) is None


def test_newest_and_best_are_kept_and_others_push_no_scheduled_one_out(tmp_path, made):
    _, states, _ = made
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1, verify=True)
    for step, loss, why in (
        (1, 3.0, True),
        (2, 1.0, False),
        (3, 2.0, True),
        (4, None, True),
        (5, 4.0, False),
        (6, 1.5, False),
    ):
        _save(checkpoints, _shift(states[10], step - 10), loss, is_scheduled=why)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3, 4, 6]
    assert checkpoints.best() == (1.0, 2)
    assert scheduled_steps(tmp_path) == [3, 4]
    older = read_manifest(tmp_path, 6)
    del older["scheduled"]
    write_manifest(tmp_path / "6", older)
    assert scheduled_steps(tmp_path) == [3, 4, 6]


def test_steps_are_ordered_by_number_not_by_time(run):
    folder, states, _ = run
    os.utime(folder / "checkpoints" / "10", (4e9, 4e9))
    assert load_run(folder).step == 30
    assert load_run(folder, step="best").step == 30
    assert load_run(folder, step=20).step == 20
    with pytest.raises(UserError, match=r"has no checkpoint 25; it has \[10, 20, 30\]"):
        load_run(folder, step=25)


def test_a_run_opens_on_one_device_as_plain_dicts(run):
    folder, states, _ = run
    loaded = load_run(str(folder))
    assert type(loaded.params) is dict and type(loaded.params["decoder"]["layers"]) is dict
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(loaded.params)} == {1}
    tokens = loaded.tokenizer.encode("The ")[None]
    assert loaded.model.apply({"params": loaded.params}, tokens).shape == (1, 4, 260)
    assert loaded.config.num_steps == 40


def test_another_models_checkpoint_is_refused_not_reshaped(run):
    folder, states, shardings = run
    config = json.loads((folder / "config.json").read_text())
    config["model"]["embed_dim"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"ema/decoder/.* is \(\[.*32\].*the experiment has"):
        load_run(folder)


def test_a_save_that_fails_is_reported_and_leaves_no_debris(run, monkeypatch):
    folder, states, _ = run
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=3, keep_best=0, verify=True)

    def full(_):
        raise OSError(28, "No space left on device")

    checkpoints.save(_shift(states[10], 30), data={}, validation=None, write_extras=full)
    with pytest.raises(UserError, match="could not be written .*No space left on device"):
        checkpoints.wait()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["10", "20", "30"]
