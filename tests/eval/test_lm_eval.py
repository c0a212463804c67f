"""lm-evaluation-harness sees the model's own probabilities and texts, and its tasks run from the command line."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the lm-eval extra")

from data import dialogue
from data.characters import ByteTokenizer, CharacterTokenizer
from data.config import PrefixLM, SpanCorruption
from data.objectives import objective_tokenizer
from data.task_batches import TaskBatchMaker
from data.task_config import Dialogue, TextToText
from eval import harness
from eval.lm_eval_model import RunModel
from model import tree
from model.config import TransformerConfig
from model.transformer import Encoder, EncoderDecoder, initialize
from train.config import UserError
from train.objective import model_inputs
from train.run import load_run

TEXTS = [("The quick", " brown"), ("", "fox"), ("The quick brown fox jumps over", " the lazy dog"), ("a ", "b"),
         ("x" * 40, "y"), ("s", "t" * 32)]  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run)


@pytest.fixture(scope="module")
def encoder_decoder(run):
    changes = dict(stack="encoder_decoder", positions="t5_relative", norm="rms", use_bias=False)
    config = TransformerConfig(**run.config.model.model_dump() | changes)
    model = EncoderDecoder(config)
    params = tree.unbox(jax.jit(partial(initialize, model))(jax.random.key(0)))
    experiment = run.config.model_copy(update=dict(model=config, objective=SpanCorruption()))
    return replace(run, model=model, params=params, config=experiment)


def instances(*arguments):
    return [SimpleNamespace(args=argument) for argument in arguments]


@partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, *inputs, **named):
    return jax.nn.log_softmax(model.apply({"params": params}, *inputs, **named).astype(jnp.float32))


def total(log_probs, context: int, continuation: list[int]) -> tuple[float, bool]:
    """Of a continuation whose first token is predicted at place `context`."""
    table = np.asarray(log_probs)[0, context : context + len(continuation)]
    scores = table[np.arange(len(continuation)), continuation]
    return scores.sum(), bool((table.argmax(axis=1) == continuation).all())


def padded(tokens: list[int]) -> np.ndarray:
    return np.array([tokens + [0] * (32 - len(tokens))], np.int32)


def direct(run, context: str, continuation: str) -> tuple[float, bool]:
    """log P by one application of the model to one text."""
    tokenizer = run.tokenizer
    spaces = len(context) - len(context.rstrip())
    context, continuation = context[: len(context) - spaces], context[len(context) - spaces :] + continuation
    before, after = tokenizer.encode(context).tolist(), tokenizer.encode(continuation).tolist()
    if isinstance(run.model, EncoderDecoder):
        source = [*before[-31:], tokenizer.eos_id]
        segments = np.array([[1] * len(source) + [0] * (32 - len(source))])
        named = dict(encoder_segment_ids=segments)
        inputs = (padded(source), padded([tokenizer.bos_id, *after[:-1]]))
        return total(log_probabilities(run.model, run.params, *inputs, **named), 0, after)
    read = [*before, tokenizer.eos_id, tokenizer.bos_id] if run.config.objective.kind == "text_to_text" else before
    read = read if run.config.objective.kind == "text_to_text" else [tokenizer.bos_id, *read]
    tokens = [*read, *after][-33:]
    context_tokens = len(tokens) - len(after)
    named = dict(prefix=np.arange(32)[None] < context_tokens) if run.reads_prefixes else {}
    return total(log_probabilities(run.model, run.params, padded(tokens[:-1]), **named), context_tokens - 1, after)


@pytest.mark.parametrize("kind", ["decoder", "prefix", "text_to_text", "encoder_decoder"])
def test_log_likelihoods_are_the_models(run, encoder_decoder, kind):
    objective = {"prefix": PrefixLM(), "text_to_text": TextToText()}.get(kind)
    if kind == "encoder_decoder":
        run = encoder_decoder
    elif objective is not None:
        run = replace(run, config=run.config.model_copy(update=dict(objective=objective)))
    expected = [direct(run, *text) for text in TEXTS]
    for batch_size in (4, 1) if kind == "decoder" else (4,):
        found = RunModel(run, batch_size).loglikelihood(instances(*TEXTS), disable_tqdm=True)
        for (score, greedy), (true_score, true_greedy) in zip(found, expected, strict=True):
            assert score == pytest.approx(true_score, abs=1e-4) and greedy == true_greedy
    assert len({score for score, _ in found}) == len(found)


def test_a_target_has_the_probability_that_training_gives_it(source_run):
    run, examples, trained = source_run
    config, numbers = run.config, np.arange(len(examples))
    maker = TaskBatchMaker(examples, False, decoder_start_id=config.model.decoder_start_id)
    batch = maker.batch(numbers, 0 * numbers)
    log_p = log_probabilities(run.model, run.params, **model_inputs(run.model, batch))
    side = "decoder_" if config.model.stack == "encoder_decoder" else ""
    texts, expected = [], []
    for number in numbers:
        fields, tokens = examples.records[number].fields, examples.row(number)["targets"][:-1].tolist()
        texts.append((f" {fields['source']}", config.objective.words.get(fields["target"][0], fields["target"][0])))
        end = int(np.flatnonzero(batch[f"{side}weights"][number])[-1])
        expected.append(total(log_p[number : number + 1], end - len(tokens), tokens))
    model = RunModel(run, 3)
    for found, true in zip(model.loglikelihood(instances(*texts), disable_tqdm=True), expected, strict=True):
        assert found == (pytest.approx(true[0], abs=1e-4), true[1])
    assert model._prompt("zz", 8) == trained(1)


def test_what_the_model_writes_is_its_likeliest(run):
    alphabet = "".join(sorted({*map(chr, range(0x4E00, 0x4E00 + 260 - 9)), *"The quick"}))
    written = RunModel(replace(run, tokenizer=CharacterTokenizer(alphabet)), 4)  # in which any tokens are a text
    [text] = written.generate_until(instances(("The quick", {"until": [], "max_gen_toks": 4})), disable_tqdm=True)
    assert len(text) == 4 and written.loglikelihood(instances(("The quick", text)), disable_tqdm=True)[0][1]
    model = RunModel(run, 4)
    [text] = model.generate_until(instances(("The quick", {"until": [], "max_gen_toks": 4})), disable_tqdm=True)
    stopped = model.generate_until(instances(("The quick", {"until": ["", text[2:]], "max_gen_toks": 4})), True)
    assert stopped == [text.partition(text[2:])[0]]
    sampled = {"until": "\n", "max_gen_toks": 8, "temperature": 2.0, "do_sample": True}
    requests = instances(("a", sampled), ("b" * 50, {"max_gen_toks": 300, "until": []}), ("a", sampled | {"top_k": 1}))
    first, long, greedy = model.generate_until(requests, disable_tqdm=True)
    assert len(run.tokenizer.encode(long)) >= 256 and model.generate_until(requests[:1], True) == [first]
    assert greedy == model.generate_until(instances(("a", {"until": "\n", "max_gen_toks": 8})), True)[0]
    with pytest.raises(UserError, match="generation_kwargs of the task: top_p"):
        model.generate_until(instances(("a", {"temperature": 1.0, "top_p": 7.0})), True)


def test_an_encoder_decoder_writes(encoder_decoder):
    tokenizer, expected = encoder_decoder.tokenizer, []
    for context in ("The quick", "x" * 99):
        source = [*tokenizer.encode(context)[-31:], tokenizer.eos_id]
        segments, written = np.array([[1] * len(source) + [0] * (32 - len(source))]), [tokenizer.bos_id]
        for _ in range(5):
            inputs = (padded(source), padded(written))
            log_probs = log_probabilities(
                encoder_decoder.model, encoder_decoder.params, *inputs, encoder_segment_ids=segments
            )
            likeliest = np.array(log_probs[0, len(written) - 1])
            likeliest[[tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, *range(260, 264)]] = -np.inf
            written.append(int(likeliest.argmax()))
        assert tokenizer.eos_id not in written
        expected.append(tokenizer.decode(written))
    requests = instances(("The quick", {"max_gen_toks": 5}), ("x" * 99, {"max_gen_toks": 5}))
    assert RunModel(encoder_decoder, 2).generate_until(requests, True) == expected


def test_rolling_covers_every_token_once(run):
    text = "The quick brown fox\njumps over the lazy dog.\n\n" * 2
    tokens = run.tokenizer.encode(text).tolist()
    windows, score = [0, 32, 64], 0.0  # the last one is filled up from the left
    for start in windows:
        end = min(start + 32, len(tokens))
        context = [run.tokenizer.bos_id] if start == 0 else tokens[max(end - 33, 0) : start]
        row = [*context, *tokens[start:end]]
        score += total(log_probabilities(run.model, run.params, padded(row[:-1])), len(context) - 1, tokens[start:end])[
            0
        ]
    found = RunModel(run, 2).loglikelihood_rolling(instances((text,), ("",), ("ab",)), disable_tqdm=True)
    assert found[0] == pytest.approx(score, abs=1e-3) and found[1] == 0
    assert found[2] == pytest.approx(direct(run, "", "ab")[0], abs=1e-4)


def test_the_chat_template(run):
    chatting = replace(run, tokenizer=objective_tokenizer(ByteTokenizer(), Dialogue()))
    model, tokenizer = RunModel(chatting, 2), chatting.tokenizer
    history = [dict(role="system", content="S"), dict(role="user", content=" hi <|end|>\ufdd0<|end|> ")]
    turns = [dialogue.Turn("user", "hi <|end|>\ufffd<|end|>")]
    rendered = model.apply_chat_template(history)
    assert model.tok_encode(rendered) == dialogue.prompt(turns, "S", tokenizer, 99).tokens
    begun = model.apply_chat_template([*history, dict(role="assistant", content="I am")], add_generation_prompt=False)
    assert begun == rendered + "I am"
    context, continuation = model._encode_pair(rendered, "yes")
    assert context == model.tok_encode(rendered) and tokenizer.decode(continuation) == "yes"
    assert model.eot_token_id == tokenizer.named[dialogue.END_TOKEN] and model.prefix_token_id == tokenizer.bos_id
    assert model.tokenizer_name.startswith("quire-") and rendered.encode()
    assert model.tok_encode("\ufdd0<|end|>") != RunModel(run, 2).tok_encode("\ufdd0<|end|>")
    with pytest.raises(UserError, match="no chat template"):
        RunModel(run, 2).apply_chat_template(history)


def test_what_cannot_be_scored(run):
    model = RunModel(run, 2)
    with pytest.raises(UserError, match="33 tokens, which is more than the 32"):
        model.loglikelihood(instances(("a", "b" * 33)), disable_tqdm=True)
    broken = replace(run, params=jax.tree.map(lambda x: x * jnp.nan, run.params))
    with pytest.raises(UserError, match="not finite"):
        RunModel(broken, 2).loglikelihood(instances(("a", "b")), disable_tqdm=True)
    with pytest.raises(UserError, match="has an encoder"):
        RunModel(replace(run, model=Encoder(run.config.model)), 2)


# The command

TASKS = {
    "capitals": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "novel": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "copying": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
RECORDS = [
    dict(question="The capital of France is", choices=[" Paris", " Rome"], answer=0, text="A quick fox."),
    dict(question="The capital of Italy is", choices=[" Paris", " Rome", " Oslo"], answer=1, text="A lazy dog."),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks on two records."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    for name, body in TASKS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}\ntest_split: test"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{body}")
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def test_the_command(tiny_run, run, tasks, offline, capsys):
    arguments = [str(tiny_run), "--tasks", "capitals,novel,copying", "--include-path", str(tasks), "--batch-size", "4"]
    assert harness.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "|capitals|" in shown.replace(" ", "") and "step 0" in shown
    path = tiny_run / "evaluation" / "lm-eval-0.json"
    stored = json.loads(path.read_text())
    assert stored["step"] == 0 and set(stored["results"]) == set(TASKS)
    right = []
    for record in RECORDS:
        scores = [direct(run, record["question"], choice)[0] for choice in record["choices"]]
        right.append(int(np.argmax(scores)) == record["answer"])
    assert stored["results"]["capitals"]["acc,none"] == pytest.approx(np.mean(right))
    score = sum(direct(run, "", record["text"])[0] for record in RECORDS)
    num_bytes = sum(len(record["text"]) for record in RECORDS)
    found = stored["results"]["novel"]
    assert found["bits_per_byte,none"] == pytest.approx(-score / num_bytes / math.log(2), rel=1e-4)
    assert found["word_perplexity,none"] == pytest.approx(math.exp(-score / 6), rel=1e-4)
    assert harness.main([*arguments, "--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["novel"]["limit"] == 1
    assert json.loads(path.read_text()) == stored and path.with_name("lm-eval-limit-1-0.json").exists()
    (tasks / "other.yaml").write_text((tasks / "novel.yaml").read_text().replace("novel", "other"))
    assert harness.main([str(tiny_run), "--tasks", "other", "--include-path", str(tasks)]) == 0
    both = json.loads(path.read_text())
    assert set(both["results"]) == {*TASKS, "other"} and both["results"]["novel"] == stored["results"]["novel"]


def test_mistakes(tiny_run, tasks, offline, capsys, monkeypatch):
    def stderr(*arguments) -> str:
        with pytest.raises(SystemExit) as error:
            harness.main([str(tiny_run), *map(str, arguments)])
        told = capsys.readouterr().err
        assert error.value.code == 2 and "Traceback" not in told
        return told

    here = ("--include-path", tasks)
    both = stderr("--tasks", "novel", "--limit", "0", "--batch-size", "0", "--include-path", tasks / "none")
    assert both.count("error: ") == 3 and "there is no folder" in both
    assert "has learned no chat template" in stderr("--tasks", "novel", "--apply-chat-template", *here)
    (tasks / "lost.yaml").write_text("task: lost\ndataset_path: json\ndataset_kwargs: {data_files: {test: /no.jsonl}}\n"
                                     "test_split: test\noutput_type: loglikelihood_rolling\n"
                                     "doc_to_text: ''\ndoc_to_target: a\n")  # fmt: skip
    assert "lm-eval cannot load lost: " in stderr("--tasks", "lost", *here)
    monkeypatch.setattr("lm_eval.tasks.TaskManager.match_tasks", lambda self, names: [])
    monkeypatch.setattr("lm_eval.tasks.TaskManager.all_tasks", ["novel"])
    assert "knows no task 'nvel'. Did you mean 'novel'?" in stderr("--tasks", "nvel", *here)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert "pip install 'quire[lm-eval]'" in stderr("--tasks", "novel")
