"""`python -m model.tree …` on runs, as a user types it."""

import json

import jax
import numpy as np
import pytest
import tiny

from data.tokenizer import train as train_tokenizer
from model.tree.__main__ import main
from model.tree.archives import open_archive
from train import load_run
from train.facts import parameter_facts
from train.run import save_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in one array."""
    from data.config import Bytes
    from model import tree
    from model.tree import edit
    from train.objective import make_model
    from train.tuning import initialize_all

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_TEXT", str(folder / "text.txt"))
        config = tiny.experiment()
    params = tree.unbox(initialize_all(make_model(config), config.tuning, jax.random.key(0)))
    tokenizer = train_tokenizer(Bytes(), [])
    save_run(folder / "a", config, params, tokenizer)
    kernel = np.asarray(params["decoder"]["layers"]["feed_forward"]["up"]["kernel"]).copy()
    kernel[1, 2, 3] += 1
    changed = edit.replace(params, {"decoder/layers/feed_forward/up/kernel": kernel})
    save_run(folder / "b", config, changed, tokenizer)
    return folder


def answer(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_tree_lists_what_load_run_opens(runs, capsys):
    rows = json.loads(answer(capsys, "tree", runs / "a", "--json"))
    params = load_run(runs / "a").params
    from model import tree

    assert [(row["path"], tuple(row["shape"])) for row in rows] == [
        (name, leaf.shape) for name, leaf in tree.named_leaves(params).items()
    ]
    by_path = {row["path"]: row for row in rows}
    row = by_path["decoder/layers/self_attention/query/kernel"]
    assert (row["dims"], row["initializer"], row["decays"]) == ("layers embed heads head_dim", "normal 0.02", True)
    assert by_path["decoder/final_norm/scale"]["initializer"] == "ones"
    assert not by_path["decoder/final_norm/scale"]["decays"]
    text = answer(capsys, "tree", runs / "a")
    assert text.splitlines()[-1].split()[:2] == ["total", f"{tree.count(params):,}"]
    assert "decoder/layers/" in text
    few = answer(capsys, "tree", runs / "a", "decoder/layers/*/up/*", "**/scale")
    assert "feed_forward/up/bias" in few and "final_norm/scale" in few and "down" not in few
    page = answer(capsys, "tree", runs / "a", "--html")
    assert page.startswith("<!doctype html>") and "self_attention" in page and "http:" not in page


def test_stats_slice_diff_and_find(runs, capsys, tmp_path):
    name = "decoder/layers/feed_forward/up/kernel"
    rows = json.loads(answer(capsys, "stats", runs / "b", name, "--by-layer", "--json"))
    assert [row["path"] for row in rows] == [f"decoder/layers/{i}/feed_forward/up/kernel" for i in (0, 1)]
    assert rows[1]["greatest"] > 0.9 > rows[0]["greatest"]
    assert "effective rank" in answer(capsys, "stats", runs / "b", "**/kernel", "--singular-values")
    whole = open_archive(runs / "b")[name][...]
    np.testing.assert_array_equal(
        json.loads(answer(capsys, "slice", runs / "b", f"{name}[1, 2, :5]", "--json")), whole[1, 2, :5].tolist()
    )
    assert "(5,) float32" in answer(capsys, "slice", runs / "b", f"{name}[1,2,:5]")
    answer(capsys, "slice", runs / "b", f"{name}[..., 3]", "--output", tmp_path / "part.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "part.npy"), whole[..., 3])
    text = answer(capsys, "diff", runs / "a", runs / "b")
    assert text.splitlines()[1].startswith(name) and "are the same" in text.splitlines()[-1]
    [changed] = [d for d in json.loads(answer(capsys, "diff", runs / "a", runs / "b", "--json")) if d["kind"] != "same"]
    assert changed["greatest"] == pytest.approx(1)
    by_layer = answer(capsys, "diff", runs / "a", runs / "b", "--by-layer")
    assert "decoder/layers/1/feed_forward/up/kernel" in by_layer and "layers/0" not in by_layer
    assert "not found" in answer(capsys, "find", runs / "a", "--nan")
    assert "token_embedding" not in answer(capsys, "find", runs / "a", "--dead")
    assert answer(capsys, "find", runs / "a", "decoder/final_norm/scale", "--value", 1).startswith("decoder/final_norm")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tree", "nowhere"], "nowhere: no such file or folder"),
        (["tree", "A", "--step", "5"], "has no step 5; it has 0"),
        (["tree", "A", "--group", "optimiser"], "has no group 'optimiser'; it has params"),
        (["tree", "A", "decoder/layer/**"], "no path of"),
        (["slice", "A", "decoder/final_norm/scales"], "Did you mean 'decoder/final_norm/scale'"),
        (["slice", "A", "decoder/final_norm/scale[99]"], "99 is not within dim 0, which has 32"),
        (["slice", "A", "decoder/final_norm/scale[x]"], "expected an index such as"),
        (["slice", "A", "decoder/final_norm/scale", "--output", "x.txt"], "must end in .npy"),
    ],
)
def test_mistakes_are_said_in_a_sentence(runs, capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        main([str(runs / "a") if word == "A" else word for word in words])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert said.lower() in told.lower() and len(told.splitlines()) == 1


def test_facts_know_what_is_trained(runs):
    facts = parameter_facts(runs / "a" / "config.json")
    assert all(fact.trained for fact in facts.values())
    assert {name for name, fact in facts.items() if not fact.decays} == {
        name for name in facts if name.endswith(("bias", "scale"))
    }
