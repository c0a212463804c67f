"""Completions against a loop without cache, batches or chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tokenizer import ByteTokenizer
from eval import completion
from eval.completion import generate
from model.decoding import Sampling
from train.config import UserError
from train.run import load_run

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


def complete(run, prompts, **options):
    return generate(run.model, run.params, run.tokenizer, prompts, **{"sampling": Sampling(), **options})


def reference(run, prompt: str, num_tokens: int) -> list[int]:
    """Greedy tokens; a context of 32 that is full becomes its last 16."""
    apply = jax.jit(lambda tokens: run.model.apply({"params": run.params}, tokens))
    text = [run.tokenizer.bos_id, *run.tokenizer.encode(prompt).tolist()]
    context = text if len(text) < 32 else text[-16:]
    written = []
    for _ in range(num_tokens):
        if len(context) == 32:
            context = context[-16:]
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(context)] = context
        logits = np.array(apply(padded)[0, len(context) - 1])
        logits[[0, 1, 2]] = logits[260:] = -np.inf
        written.append(int(logits.argmax()))
        context = [*context, written[-1]]
    return written


@pytest.mark.parametrize("prompt", ["", "The quick", "x" * 30, "x" * 31, "y" * 100])
def test_writing_goes_on_when_the_context_is_full(run, prompt, capsys):
    expected = reference(run, prompt, 70)
    assert run.tokenizer.eos_id not in expected
    [result] = complete(run, [prompt], sampling=GREEDY, max_new_tokens=70)
    assert result.text == run.tokenizer.decode(expected)
    assert (result.prompt, result.finish, result.tokens) == (prompt, "length", 70)
    assert ("reads the last 16" in capsys.readouterr().err) == (len(prompt) > 30)


def test_texts_depend_on_seed_and_place_only(run):
    prompts = ["The quick", "", "A much longer prompt, which overflows"]
    together = complete(run, prompts, samples=2, max_new_tokens=40, seed=3)
    assert together == complete(run, prompts, samples=2, max_new_tokens=40, seed=3)
    assert together[0] != together[1]
    assert complete(run, prompts[:1], max_new_tokens=40, seed=3) == together[:1]
    assert complete(run, prompts[:1], max_new_tokens=13, seed=3)[0].text.rstrip("\ufffd") in together[0].text
    assert complete(run, prompts[:1], max_new_tokens=40, seed=4) != together[:1]


def test_streamed_text_is_the_text(run, monkeypatch):
    together = complete(run, ["a", "b"], samples=2, max_new_tokens=20)
    monkeypatch.setattr(completion, "_BATCH_ROWS", 3)
    streamed = [""] * 4

    def on_text(index: int, text: str) -> None:
        streamed[index] += text

    completions = complete(run, ["a", "b"], samples=2, max_new_tokens=20, on_text=on_text)
    assert completions == together
    assert [result.text for result in completions] == streamed


def test_stop_strings(run):
    [free] = complete(run, ["The"], max_new_tokens=30)
    for stop in (free.text[3:5], free.text[7:9], free.text[12:16]):
        [stopped] = complete(run, ["The"], max_new_tokens=30, stop=[stop])
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.finish == "stop"


def test_the_end_of_a_document_ends_the_text(run):
    first, second = reference(run, "The", 2)

    class Ending(ByteTokenizer):
        eos_id = second

    [result] = generate(run.model, run.params, Ending(), ["The"], sampling=GREEDY)
    assert (result.text, result.finish, result.tokens) == (Ending().decode([first]), "end", 1)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(samples=0), "samples"),
        (dict(seed=-1), "seed"),
        (dict(stop=[""]), "stop"),
    ],
)
def test_impossible_arguments(run, options, message):
    with pytest.raises(UserError, match=message):
        complete(run, ["The"], **options)


def test_invalid_unicode(run):
    with pytest.raises(UserError, match="prompt 2 is not valid Unicode"):
        complete(run, ["The", "\udcff"])


def test_a_diverged_model_is_refused(run):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), run.params)
    with pytest.raises(UserError, match="not finite"):
        generate(run.model, broken, run.tokenizer, ["The"])
