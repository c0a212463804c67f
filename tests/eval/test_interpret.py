"""Explanations equal what can be worked out by hand, and find what was planted."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from data.config import Bytes, Classification
from data.tokenizer import train as train_tokenizer
from eval import interpret
from eval.interpret import Target, linear_cka
from model import tree
from model.config import TransformerConfig
from model.transformer import initialize
from model.tree import edit
from train.config import UserError
from train.objective import make_model
from train.run import Run

STACKS = {
    "decoder": dict(positions="learned"),
    "rotary decoder": dict(norm="rms", activation="swiglu"),
    "encoder": dict(stack="encoder", positions="learned", heads=("lm", "sequence"), num_labels=3),
    "encoder_decoder": dict(stack="encoder_decoder", positions="t5_relative", norm="rms", use_bias=False),
}


def run_of(monkeypatch, noise=0.15, **choices) -> Run:
    """A model that was never trained, with weights large enough to be far from linear."""
    monkeypatch.setenv("TINY_TEXT", "nothing.txt")
    model = TransformerConfig(**(tiny.SIZES | dict(vocab_size=264) | choices))
    bare = {"decoder": tiny.experiment, "encoder": tiny.encoder, "encoder_decoder": tiny.encoder_decoder}[model.stack]()
    config = bare.model_copy(update=dict(model=model))
    if model.stack == "encoder":
        objective = Classification(labels=("a", "b", "c"), names=("first", "second", "third"))
        config = config.model_copy(update=dict(objective=objective))
    network = make_model(config)
    params = tree.unbox(initialize(network, jax.random.key(0)))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + noise * random.standard_normal(p.shape).astype(np.float32), params)
    return Run(Path("run"), config, network, params, train_tokenizer(Bytes(), []), 7, 1, None)


@pytest.fixture(params=STACKS)
def run(request, monkeypatch):
    return run_of(monkeypatch, **STACKS[request.param])


def read(run, text="Some text.", written="wr"):
    return interpret.read(run, text, written if run.config.model.stack == "encoder_decoder" else None)


# Attention


def test_attention_has_a_distribution_for_every_token(run):
    reading = read(run)
    maps = interpret.attention(run, reading)
    assert maps.shape == (2, 4, len(reading.pieces), len(reading.pieces))
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
    if run.config.model.stack == "encoder_decoder":
        assert interpret.attention(run, reading, "cross").shape[2:] == (len(reading.pieces), len(reading.source))
        assert interpret.attention(run, reading, "encoder").shape[2:] == (len(reading.source), len(reading.source))
    else:
        with pytest.raises(UserError, match="only an encoder–decoder has"):
            interpret.attention(run, reading, "cross")


def test_rollout_and_flow_by_hand():
    # Two layers of one head over two tokens; with the residual connection, half of each is the token itself.
    maps = np.array([[[[1.0, 0.0], [0.5, 0.5]]], [[[1.0, 0.0], [1.0, 0.0]]]])
    first, second = np.array([[1.0, 0.0], [0.25, 0.75]]), np.array([[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(interpret.rollout(maps), [first, second @ first])
    np.testing.assert_allclose((second @ first)[1], [0.625, 0.375])
    # To the last token, from the first: 1 into itself, of which 0.5 goes on, and 0.25 of the 0.5 through the second.
    np.testing.assert_allclose(interpret.flow(maps, -1), [0.75, 0.5], atol=1e-6)
    np.testing.assert_allclose(interpret.flow(maps, 0), [1.0, 0.0], atol=1e-6)


def test_rollout_of_heads_is_that_of_their_mean():
    maps = np.random.default_rng(0).dirichlet(np.ones(5), (3, 4, 5))
    np.testing.assert_allclose(interpret.rollout(maps), interpret.rollout(maps.mean(axis=1, keepdims=True)))
    np.testing.assert_allclose(interpret.rollout(maps).sum(axis=-1), 1)


# Attribution


def test_integrated_gradients_are_complete(run):
    found = interpret.integrated_gradients(run, read(run))
    assert found.error < 0.01 and abs(found.output - found.baseline) > 0.05
    np.testing.assert_allclose(found.scores.sum(), found.output - found.baseline, rtol=0.01)
    pieces = read(run).source or read(run).pieces
    assert found.pieces == pieces
    special = [i for i, piece in enumerate(pieces) if piece.startswith("<")]
    assert special and not np.any(found.scores[special])  # they stand on both ends of the line


def test_the_label_is_told_by_its_name(monkeypatch):
    run = run_of(monkeypatch, **STACKS["encoder"])
    found = interpret.integrated_gradients(run, read(run), Target("sequence", 1))
    assert found.explained == "second"


def test_gradient_times_input_is_the_slope_towards_nothing(run):
    reading = read(run)
    target = Target("lm", 100)
    found = interpret.gradient_times_input(run, reading, target)
    from eval.interpret.attribution import _address, _embedded, _logit

    address = _address(run, reading)
    embedded = _embedded(run, reading, address)
    logit = _logit(run, reading, target, address)
    for place in (0, 3):
        direction = jnp.zeros_like(embedded).at[:, place].set(embedded[:, place])
        slope = (logit(embedded + 5e-3 * direction) - logit(embedded - 5e-3 * direction)) / 1e-2
        assert found.scores[place] == pytest.approx(float(slope), rel=0.05, abs=2e-3)


# Lenses


def test_the_last_layer_of_a_lens_is_the_model(run):
    reading = read(run)
    lens = interpret.logit_lens(run, reading)
    outputs = run.model.apply({"params": run.params}, **reading.inputs)
    logits = outputs["lm"] if isinstance(outputs, dict) else outputs
    np.testing.assert_allclose(lens.log_probabilities[-1], jax.nn.log_softmax(logits)[0], atol=1e-4)
    assert lens.log_probabilities.shape == (2, len(reading.pieces), 264)
    assert np.all(lens.divergence()[0] > 1e-4) and np.allclose(lens.divergence()[1], 0)


def test_layers_that_do_nothing_all_answer_alike(monkeypatch):
    run = run_of(monkeypatch, **STACKS["rotary decoder"] | dict(use_bias=False))
    nothing = edit.map_leaves(lambda name, x: jnp.zeros_like(x), run.params, "**/out/kernel", "**/down/kernel")
    idle = Run(**{**run.__dict__, "params": nothing})
    lens = interpret.logit_lens(idle, read(idle))
    np.testing.assert_allclose(lens.divergence(), 0, atol=1e-5)
    # By hand: an embedding, the norm, the tied table.
    x = np.asarray(nothing["token_embedding"]["embedding"])[read(idle).inputs["tokens"][0]]
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + run.config.model.norm_epsilon)
    x = x * np.asarray(nothing["decoder"]["final_norm"]["scale"])
    logits = x @ np.asarray(nothing["token_embedding"]["embedding"]).T
    np.testing.assert_allclose(lens.log_probabilities[0], jax.nn.log_softmax(logits), atol=1e-4)


def test_a_tuned_lens_starts_as_the_logit_lens_and_comes_nearer(monkeypatch):
    run = run_of(monkeypatch, **STACKS["decoder"])
    readings = [read(run, f"Text number {i}.") for i in range(4)]
    before = interpret.logit_lens(run, readings[0]).divergence()[0].mean()
    untrained = interpret.train_tuned_lens(run, readings, steps=0)
    assert interpret.tuned_lens(run, readings[0], untrained).divergence()[0].mean() == pytest.approx(before, rel=1e-4)
    trained = interpret.train_tuned_lens(run, readings, steps=60, learning_rate=3e-3)
    assert interpret.tuned_lens(run, readings[0], trained).divergence()[0].mean() < 0.5 * before


# Ablation


def test_a_head_that_writes_nothing_has_no_effect_and_the_others_have(run):
    stack = "decoder" if "decoder" in run.params else "encoder"
    out = f"{stack}/layers/self_attention/out/kernel"
    kernel = np.asarray(tree.named_leaves(run.params)[out]).copy()
    kernel[1, 2] = 0
    run = Run(**{**run.__dict__, "params": edit.replace(run.params, {out: kernel})})
    reading = read(run)
    found = interpret.head_effects(run, [reading])
    assert found.changes.shape == (2, 4) and found.parts == (f"{stack}/layers/0", f"{stack}/layers/1")
    assert found.changes[1, 2] == pytest.approx(0, abs=1e-5)
    assert np.abs(np.delete(found.changes.ravel(), 6)).min() > 1e-5
    # The same by taking the head's output weights away.
    kernel = kernel.copy()
    kernel[0, 3] = 0
    less = Run(**{**run.__dict__, "params": edit.replace(run.params, {out: kernel})})
    target = interpret.reading.target_of(run, reading, None)
    without = float(target.of(interpret.reading.call(less, less.params, reading.inputs))[0])
    assert found.changes[0, 3] == pytest.approx(without - found.score, abs=1e-4)


def test_a_layer_without_effect_changes_nothing(monkeypatch):
    run = run_of(monkeypatch, **STACKS["rotary decoder"] | dict(use_bias=False))

    def only_first(name, x):
        return x.at[1].set(0)

    idle = edit.map_leaves(only_first, run.params, "**/out/kernel", "**/down/kernel")
    run = Run(**{**run.__dict__, "params": idle})
    found = interpret.layer_effects(run, [read(run), read(run, "Another.")])
    assert found.changes.shape == (2,)
    assert abs(found.changes[0]) > 1e-3 and found.changes[1] == pytest.approx(0, abs=1e-5)


# Probes


def test_cka_by_hand():
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 6))
    rotation, _ = np.linalg.qr(random.standard_normal((6, 6)))
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    a, b = np.array([[1.0], [-1], [1], [-1]]), np.array([[1.0], [1], [-1], [-1]])
    assert linear_cka(a, b) == pytest.approx(0)
    # Two columns of which one is shared: |yᵀx|² = 16, |xᵀx| = 4, |yᵀy| = 4√2.
    assert linear_cka(a, np.hstack([a, b])) == pytest.approx(16 / (4 * 4 * 2**0.5))


def test_similarity_of_a_run_with_itself_is_one_on_the_diagonal(monkeypatch):
    run = run_of(monkeypatch, **STACKS["decoder"])
    texts = [(read(run, f"Text {i}."), read(run, f"Text {i}.")) for i in range(3)]
    first, second, table = interpret.similarity(run, run, texts)
    assert first == second == ["decoder/layers/0/output", "decoder/layers/1/output"]
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-6)
    np.testing.assert_allclose(table, table.T, atol=1e-6)


def test_a_probe_finds_what_is_there_and_not_what_is_not(monkeypatch):
    pytest.importorskip("sklearn")
    run = run_of(monkeypatch, **STACKS["encoder"])
    random = np.random.default_rng(0)
    texts = [("".join(random.choice(list("abcd" if i % 2 else "wxyz"), 8))) for i in range(40)]
    readings = [read(run, text) for text in texts]
    found = interpret.linear_probes(run, readings, [i % 2 for i in range(40)])
    assert [probe.address for probe in found] == ["encoder/layers/0/output", "encoder/layers/1/output"]
    assert all(probe.test_accuracy == 1 and probe.majority == 0.5 for probe in found)
    [chance] = interpret.linear_probes(run, readings, [i // 2 % 2 for i in range(40)], "encoder/layers/1/output")
    assert chance.test_accuracy < 0.9
    with pytest.raises(UserError, match="cannot be split"):
        interpret.linear_probes(run, readings[:3], [0, 1, 2])


def test_top_activations_are_the_greatest_of_all(monkeypatch):
    run = run_of(monkeypatch, **STACKS["decoder"])
    readings = [read(run, text) for text in ("abcab", "cab", "b")]
    address = "decoder/layers/1/feed_forward/hidden"
    found = interpret.top_activations(run, readings, address, 5, k=4, context=2)
    every = []
    for reading in readings:
        values = interpret.reading.tapped(run, reading, address)[1][address][0, :, 5]
        every += [(float(value), piece) for value, piece in zip(values, reading.pieces, strict=True)]
    assert [(unit.activation, unit.piece) for unit in found] == sorted(every, reverse=True)[:4]
    with pytest.raises(UserError, match="has 128 units; there is no 999"):
        interpret.top_activations(run, readings, address, 999)


# Vectors and circuits


def test_neighbours_and_map(monkeypatch):
    run = run_of(monkeypatch, **STACKS["decoder"])
    table = np.asarray(run.params["token_embedding"]["embedding"]).copy()
    a, b = (int(run.tokenizer.encode(word)[0]) for word in "ab")
    table[b] = 2 * table[a]
    run = Run(**{**run.__dict__, "params": edit.replace(run.params, {"token_embedding/embedding": table})})
    [(nearest, cosine), *_] = interpret.neighbours(run, "a", 3)
    assert nearest == run.tokenizer.pieces([b])[0] and cosine == pytest.approx(1, abs=1e-5)
    points = interpret.flat_map(run, ["a", "b", "c", "de"])
    np.testing.assert_allclose(points[0], points[1], atol=1e-5)
    assert points.shape == (4, 2)
    with pytest.raises(UserError, match="is 2 tokens"):
        interpret.neighbours(run, "ab")


def test_a_hand_built_model_of_two_layers_has_a_perfect_induction_head(monkeypatch):
    """Layer 0 writes the token before each into a part of its own; layer 1 looks for the token there."""
    vocab, places = 264, 32
    width = 2 * vocab + places
    config = dict(
        embed_dim=width, num_heads=1, head_dim=vocab, mlp_dim=8, max_length=places, positions="learned", norm="rms",
        use_bias=False, attention_scale=1.0,
    )  # fmt: skip
    run = run_of(monkeypatch, noise=0, **config)
    token, place, before = np.split(np.eye(width, dtype=np.float32), [vocab, vocab + places])
    sharp = 40.0
    query, key, value, out = (
        np.zeros((2, *shape), np.float32) for shape in [(width, 1, vocab)] * 3 + [(1, vocab, width)]
    )
    query[0, vocab + 1 : vocab + places, 0, : places - 1] = sharp * np.eye(
        places - 1
    )  # a place asks for the one before
    key[0, vocab : vocab + places, 0, :places] = np.eye(places)
    value[0, :vocab, 0] = np.eye(vocab)
    out[0, 0] = before
    query[1, :vocab, 0] = sharp * np.eye(vocab)  # a token asks for where it is the one before
    key[1, vocab + places :, 0] = np.eye(vocab)
    attention = "decoder/layers/self_attention"
    changes = {
        "token_embedding/embedding": token,
        "decoder/position_embedding/embedding": place,
        f"{attention}/query/kernel": query,
        f"{attention}/key/kernel": key,
        f"{attention}/value/kernel": value,
        f"{attention}/out/kernel": out,
        "decoder/layers/feed_forward/down/kernel": np.zeros((2, 8, width), np.float32),
    }
    run = Run(**{**run.__dict__, "params": edit.replace(run.params, changes)})
    scores = interpret.induction_scores(run, length=12)
    assert scores.shape == (2, 1)
    assert scores[1, 0] == pytest.approx(1, abs=1e-3) and scores[0, 0] < 0.1

    seen = np.arange(10, 60)  # the model knows these alone
    known = np.where(np.isin(np.arange(vocab), seen)[:, None], token, 0)
    run = Run(**{**run.__dict__, "params": edit.replace(run.params, {"token_embedding/embedding": known})})
    assert interpret.induction_scores(run, length=12)[1, 0] < 0.5
    assert interpret.induction_scores(run, tokens=seen, length=12)[1, 0] == pytest.approx(1, abs=1e-3)


def test_an_untrained_model_has_no_induction_head(run):
    if run.config.model.stack != "decoder":
        with pytest.raises(UserError, match="is no decoder"):
            interpret.induction_scores(run)
    else:
        assert interpret.induction_scores(run, length=10).max() < 0.5


# Pictures and pages


def test_every_picture_can_be_drawn(monkeypatch):
    run = run_of(monkeypatch, **STACKS["decoder"])
    reading = read(run, "中 and $x$")
    maps = interpret.attention(run, reading)
    figures = [
        interpret.draw_attention(maps[0], reading.pieces),
        interpret.draw_attribution(interpret.gradient_times_input(run, reading)),
        interpret.draw_lens(interpret.logit_lens(run, reading), run),
        interpret.draw_effects(interpret.layer_effects(run, [reading])),
        interpret.draw_similarity(["a/layers/0/output"], ["b"], np.array([[0.5]])),
        interpret.draw_map(interpret.flat_map(run, ["a", "b", "c"]), ["a", "b", "c"]),
    ]
    for figure in figures:
        shown = figure._repr_png_()  # what a notebook asks for
        assert shown.startswith(b"\x89PNG") and len(shown) > 3000


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


def test_the_attention_page_loads_nothing_and_no_text_can_leave_its_place(run, tmp_path):
    path = interpret.write_attention_page(run, read(run, "</script><b>x"), tmp_path / "page.html")
    page = path.read_text("utf-8")
    assert "http:" not in page and "https:" not in page and page.count("</script>") == 1
    parts = json.loads(re.search(r"const PARTS = (.*);\n", page)[1])
    assert list(parts) == ["self", *(["source", "within the source"] if "encoder_tokens" in read(run).inputs else [])]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_person_can_click_through_the_attention_page(monkeypatch, tmp_path):
    run = run_of(monkeypatch, **STACKS["encoder"])
    reading = read(run, "abc")
    path = interpret.write_attention_page(run, reading, tmp_path / "page.html")
    clicks = """
        document.querySelectorAll("#layers button")[1].click();
        document.querySelectorAll("#heads button")[2].click();
        document.querySelectorAll("#keys .token")[1].click();
    """
    path.write_text(path.read_text("utf-8").replace("\ndraw();\n</script>", f"\ndraw();{clicks}</script>"), "utf-8")
    command = [CHROMIUM, *OPTIONS.split(), f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    told = re.search(r'<p id="told">(.*?)</p>', dom)[1]
    weights = interpret.attention(run, reading)[1, 2, 1]
    best = int(weights.argmax())
    assert told.startswith(f"“{reading.pieces[1]}” attends to “")
    assert f"{100 * round(float(weights[best]), 3):.1f} %" in told
    assert dom.count('aria-pressed="true"') >= 4  # part, layer, head, token
