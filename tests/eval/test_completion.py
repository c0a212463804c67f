"""Completions against a loop without cache, batches or chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tokenizer import ByteTokenizer
from eval import completion
from eval.completion import generate
from model.beam_search import BeamSearch
from model.decoding import Constraints, Sampling
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
    assert complete(run, prompts[:1], max_new_tokens=40, seed=2**32 + 3) == together[:1]


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


def test_a_beam_search_gives_its_best_texts_with_their_scores(run):
    beams, streamed = BeamSearch(3, n_best=2), []
    prompts = ["The", "A much longer prompt, which overflows"]
    options = dict(sampling=beams, max_new_tokens=12)
    found = complete(run, prompts, **options, on_text=lambda index, text: streamed.append((index, text)))
    assert [result.prompt for result in found] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert streamed == [(i, result.text) for i, result in enumerate(found) if result.text]
    assert found[0].score >= found[1].score and found[2].score >= found[3].score
    [greedy] = complete(run, ["The"], sampling=GREEDY, max_new_tokens=12)
    [one] = complete(run, ["The"], sampling=BeamSearch(1), max_new_tokens=12)
    assert (one.text, one.finish, one.tokens) == (greedy.text, greedy.finish, greedy.tokens)
    assert greedy.score is None and one.score < 0
    [stopped, _] = complete(run, ["The"], **options, stop=[found[0].text[4:6]])
    assert (stopped.text, stopped.finish) == (found[0].text[: found[0].text.index(found[0].text[4:6])], "stop")


def test_a_beam_search_ends_where_the_context_does(run):
    [found] = complete(run, ["x" * 20], sampling=BeamSearch(2), max_new_tokens=50)
    assert (found.finish, found.tokens) == ("length", 32 - 21)


def test_constraints_on_every_way_of_writing(run, monkeypatch):
    letters = np.isin(np.arange(264), run.tokenizer.encode("abcdefghijklmnopqrstuvwxyzABCDEFG"))
    monkeypatch.setattr(completion, "allowed_tokens", lambda *_: letters)
    constraints = Constraints(no_repeat_ngram=1, first_token=int(run.tokenizer.encode("Q")[0]))
    for sampling in (GREEDY, Sampling(), BeamSearch(2)):
        [found] = complete(run, ["ab"], sampling=sampling, max_new_tokens=24, constraints=constraints)
        whole = "ab" + found.text
        assert found.text.startswith("Q") and len(whole) == 26 == len(set(whole))


def test_a_text_that_nothing_may_follow_ends(run, monkeypatch):
    monkeypatch.setattr(completion, "allowed_tokens", lambda *_: np.arange(264) == run.tokenizer.encode("a")[0])
    [found] = complete(run, ["b"], max_new_tokens=9, constraints=Constraints(no_repeat_ngram=2))
    assert (found.text, found.finish, found.tokens) == ("aa", "length", 2)
    [found] = complete(run, ["b"], sampling=BeamSearch(2), max_new_tokens=9, constraints=Constraints(no_repeat_ngram=2))
    assert (found.text, found.finish, found.score) == ("", "length", None)


def test_many_long_prompts_are_noted_in_few_lines(run, capsys):
    complete(run, ["x" * 40] * 9, max_new_tokens=1)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 6 and notes[-1] == "note: so it is with 4 more"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sampling=BeamSearch(2), samples=2), "samples=2 is for sampling; of a beam search, n_best=1"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(samples=0), "samples"),
        (dict(seed=-1), "seed must be at least 0"),
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
