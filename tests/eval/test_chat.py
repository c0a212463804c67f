"""What is read before a reply, what a terminal shows, and that no message or key ends a conversation in a traceback."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from tiny import ROOT

from data import dialogue
from data.characters import ByteTokenizer
from data.config import SpanCorruption
from data.dialogue import Turn, read_turns
from data.objectives import objective_tokenizer
from data.records import Record
from data.task_config import Dialogue, TextToText
from eval import chat, conversation
from eval.completion import Completion, allowed_tokens, generate
from eval.tasks import predict
from model import tree
from model.config import TransformerConfig
from model.decoding import Sampling
from model.transformer import EncoderDecoder, initialize
from train import sharding
from train.config import Mesh, UserError
from train.run import load_run

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def plain(tiny_run):
    return load_run(tiny_run)


@pytest.fixture(scope="module")
def run(plain):
    """The same model with role tokens, for which its vocabulary of 264 has just the room."""
    return replace(plain, tokenizer=objective_tokenizer(ByteTokenizer(), Dialogue()))


# What is read and written


def write(run, turns, system="", max_new_tokens=12):
    streamed = []
    asked = conversation.request(run, turns, system, max_new_tokens)
    written = conversation.reply(run, asked, sampling=GREEDY, seed=0, on_text=streamed.append)
    assert "".join(streamed) == written.text
    return asked, written


def most_likely(run, tokens: list[int], num_tokens: int, end: int) -> list[int]:
    """Greedy tokens after `tokens`, without a cache; of the special ones only `end` may be written."""
    apply = jax.jit(lambda tokens: run.model.apply({"params": run.params}, tokens))
    text = list(tokens)
    for _ in range(num_tokens):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(text)] = text
        logits = np.array(apply(padded)[0, len(text) - 1])
        logits[[i for i in run.tokenizer.special_ids if i != end]] = -np.inf
        text.append(int(logits.argmax()))
    return text[len(tokens) :]


def test_a_reply_follows_the_prompt_of_the_template(run):
    turns = [Turn("user", "hi"), Turn("assistant", "ho"), Turn("user", "so?")]
    asked, written = write(run, turns, "S")
    assert asked.prompt == dialogue.prompt(turns, "S", run.tokenizer, 20).tokens and not asked.notes
    assert asked.eos_id == run.tokenizer.named[dialogue.END_TOKEN]
    expected = most_likely(run, asked.prompt, 12, asked.eos_id)
    assert asked.eos_id not in expected
    assert (written.text, written.finish) == (run.tokenizer.decode(expected), "length")
    prompt = (run.model, run.params, run.tokenizer, [asked.prompt])
    [ended] = generate(*prompt, sampling=GREEDY, max_new_tokens=12, eos_id=expected[0])
    assert (ended.text, ended.finish, ended.tokens) == ("", "end", 0)


def test_a_reply_has_no_special_token_but_its_end(run):
    end = run.tokenizer.named[dialogue.END_TOKEN]
    allowed = allowed_tokens(run.tokenizer, 264, end)
    assert np.flatnonzero(allowed).tolist() == [*range(4, 260), end]
    assert allowed_tokens(ByteTokenizer(), 264, None).nonzero()[0].tolist() == [3, *range(4, 260)]


def test_a_full_context_drops_the_oldest_turns_and_says_so(run):
    turns = [Turn("user", "a" * 5), Turn("assistant", "b" * 8), Turn("user", "c" * 5)]
    asked = conversation.request(run, turns, "", 16)
    assert len(asked.prompt) <= 16 and asked.max_new_tokens == 16
    assert asked.notes == ("the context of 32 tokens is full: the oldest 2 turns are no longer read",)
    assert conversation.request(run, turns, "", 9).notes == (
        "the context of 32 tokens is full: the oldest 1 turn is no longer read",
    )
    [note] = conversation.request(run, [Turn("user", "x" * 2**20)], "", 500).notes
    assert re.match(r"1,048,5\d\d tokens do not fit into the context of 32", note)


def test_a_decoder_without_roles_continues_plain_text(plain, run):
    assert conversation.form(plain) == "plain" and conversation.form(run) == "roles"
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    asked = dialogue.plain_prompt(turns, "Sys", plain.tokenizer, 100)
    text = "Sys\n\nUser: a\nAssistant: b\nUser: c\nAssistant:"
    assert asked.tokens == [plain.tokenizer.bos_id, *plain.tokenizer.encode(text)]
    _, written = write(plain, turns)
    asked = conversation.request(plain, turns, "", 12)
    assert asked.stop == ("\nUser:",) and asked.eos_id is None
    assert plain.tokenizer.decode(asked.prompt).endswith("User: c\nAssistant:") and written.tokens == 12


def test_an_encoder_decoder_answers_each_message_by_itself(plain):
    changes = dict(stack="encoder_decoder", positions="t5_relative", norm="rms", use_bias=False)
    config = TransformerConfig(**plain.config.model.model_dump() | changes)
    model = EncoderDecoder(config)
    params = tree.unbox(jax.jit(partial(initialize, model))(jax.random.key(0)))
    experiment = plain.config.model_copy(update=dict(model=config, objective=SpanCorruption()))
    run = replace(plain, model=model, params=params, config=experiment)
    asked, written = write(run, [Turn("user", "old"), Turn("assistant", "older"), Turn("user", "hello")])
    [same] = generate(model, params, run.tokenizer, ["hello"], sampling=GREEDY, max_new_tokens=12)
    assert written == same
    [note] = conversation.request(run, [Turn("user", "x" * 50)], "", 12).notes
    assert note.startswith("19 tokens do not fit")


def test_a_decoder_that_learned_texts_from_texts_answers_each_message_by_itself(plain):
    learned = plain.config.model_copy(update=dict(objective=TextToText(prefix="Do: ")))
    asked = conversation.request(replace(plain, config=learned), [Turn("user", "hello")], "", 500)
    ids = plain.tokenizer
    assert asked.prompt == (None, [*ids.encode("Do: hello"), ids.eos_id, ids.bos_id])
    assert asked.max_new_tokens == 32 - 11
    asked = conversation.request(replace(plain, config=learned), [Turn("user", "x" * 50)], "", 500)
    assert len(asked.prompt[1]) == 16 and asked.notes[0].startswith("40 tokens do not fit")


def test_a_message_is_read_as_training_reads_a_source(source_run):
    run, examples, trained = source_run
    for number in (0, len(examples) - 1):
        source = examples.records[number].fields["source"]
        assert conversation.request(run, [Turn("user", f" {source} ")], "", 8).prompt == trained(number)
    written = write(run, [Turn("user", "zz")], max_new_tokens=8)[1]
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    scored = predict(run.config, run.model, run.params, run.tokenizer, examples, mesh=mesh)[1]
    assert scored["source"] == "zz" and written.text.strip() == scored["predicted"]


# The terminal


def answers(run, asked, *, sampling, seed, on_text):
    """Stands for a model: it answers with its seed and how much it read; it is stopped where the message has a "!"."""
    text, user = run.tokenizer.decode(asked.prompt), run.tokenizer.named["<|user|>"]
    message = run.tokenizer.decode(asked.prompt[len(asked.prompt) - asked.prompt[::-1].index(user) :])
    words = [" \n", f"seed {seed}", f" of {len(text)}"][: 1 if "nothing" in message else 3]
    for i, word in enumerate(words):
        if "?!" in message or "!" in message and i == 2:
            raise KeyboardInterrupt
        on_text(word)
    finish = "length" if "long" in message else "end"
    return Completion(text, "".join(words), finish, 3)


@pytest.fixture
def talk(run, monkeypatch, capsys):
    def talk(script: str | bytes, *arguments) -> str:
        model = run.config.model.model_copy(update=dict(max_length=256))
        longer = replace(run, config=run.config.model_copy(update=dict(model=model)))
        monkeypatch.setattr("train.run.load_run", lambda *_: longer)
        monkeypatch.setattr("eval.conversation.reply", answers)
        script = script.encode() if isinstance(script, str) else script
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(script), "utf-8"))
        assert chat.main(["RUN", *map(str, arguments)]) == 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return captured.out

    return talk


def test_a_scripted_conversation(talk):
    out = talk("hi\n\nso\n/undo\nso\n/reset\nagain\n/quit\nnever\n", "--seed", "7")
    said = [line for line in out.splitlines() if line.startswith(("You", "Model"))]
    assert said == [
        "You: hi", "Model: seed 7 of 2", "You: ", "You: so", "Model: seed 8 of 15", "You: /undo",
        "You: so", "Model: seed 9 of 15", "You: /reset", "You: again", "Model: seed 10 of 5", "You: /quit",
    ]  # fmt: skip
    assert "a dialogue model; it reads 256 tokens" in out and "taken back: so" in out


def test_stopped_replies(talk, tmp_path):
    out = talk(f"hi\nstop!\nnow\n/save {tmp_path}/a.jsonl\n")
    assert "Model: seed 1\nstopped\n" in out and "Model: seed 2 of" in out
    record = json.loads((tmp_path / "a.jsonl").read_text())
    assert [turn["content"] for turn in record["turns"]][2:4] == ["stop!", "seed 1"]
    assert "your message is taken back" in talk("what?!\n/undo\n") and "nothing to take back" in talk("what?!\n/undo\n")
    assert "the reply was cut off at 200 tokens" in talk("long\n")


def test_an_empty_reply_is_as_if_nothing_had_been_said(talk, tmp_path):
    out = talk(f"hi\nsay nothing\nnow\n/save {tmp_path}/a.jsonl\n", "--transcript", tmp_path / "b.jsonl")
    assert "the reply is empty; your message is taken back" in out
    for name in ("a.jsonl", "b.jsonl"):
        record = Record(json.loads((tmp_path / name).read_text()), name)
        assert [turn.text for turn in read_turns(record, Dialogue()).turns][::2] == ["hi", "now"]


def test_a_system_text_that_nobody_would_read_is_refused(source_run, monkeypatch, capsys):
    monkeypatch.setattr("train.run.load_run", lambda *_: source_run[0])
    with pytest.raises(SystemExit) as error:
        chat.main(["RUN", "--system", "Be."])
    assert error.value.code == 2 and "it reads no system text" in capsys.readouterr().err


def test_commands(talk, tmp_path):
    settings = ("", "temperature 0.5", "top-p none", "top_k 5", "seed 3", "max_new_tokens 9")
    out = talk("/help\n/hlp\n" + "".join(f"/set {setting}\n" for setting in settings))
    assert "take back your last message" in out and "there is no command /hlp" in out and "Did you mean '/help'?" in out
    assert out.splitlines()[-1].startswith(
        "temperature 0.5, top_k 5, top_p none, min_p none, repetition_penalty 1.0, max_new_tokens 9, seed 3"
    )
    for line, message in {
        "/set temperature hot": "needs a number, not 'hot'",
        "/set temperature none": "needs a number, not 'none'",
        "/set temperature -1": "temperature must be a finite number",
        "/set temperature": "needs a number, not ''",
        "/set top_p 2": "top_p must be",
        "/set max_new_tokens 0": "max_new_tokens must be from 1",
        "/set seed 1e3": "needs a number, not '1e3'",
        "/set temprature 1": "no setting temprature. Did you mean 'temperature'?",
        "/save": "needs the name of a file",
        "/save /": "/ exists; name a new file",
        f"/save {tmp_path}/{'x' * 300}": "cannot be written",
        "/save a\0b": "NUL",
        "/undo": "nothing to take back",
    }.items():
        assert message in talk(line + "\nhi\n"), line
    assert "Model: seed 0 of 4" in talk("//hat\n")


def test_the_system_text_stays(talk):
    out = talk("/system Be.\nhi\n/reset\nhi\n/system\nhi\n", "--system", "Was.")
    assert re.findall("Model: .*", out) == ["Model: seed 0 of 5", "Model: seed 1 of 5", "Model: seed 2 of 15"]


def test_transcripts(talk, tmp_path, capsys):
    path = tmp_path / "talk.txt"
    talk("hi\nso\n", "--transcript", path, "--system", "Be.")
    header, *rest = path.read_text().split("\n\n")
    assert rest == ["System: Be.", "You: hi", "Model: seed 0 of 5", "You: so", "Model: seed 1 of 18\n"]
    assert "step 0" in header and "temperature 0.7, top_k none, top_p 0.95" in header
    out = talk(f"hi\n/save {tmp_path}/a.jsonl\n/undo\n/save {tmp_path}/a.jsonl\nho\n/save {tmp_path}/a.jsonl\n")
    assert out.count("turns are in") == 3
    [line] = (tmp_path / "a.jsonl").read_text().splitlines()
    record = Record(json.loads(line), "a.jsonl:1")
    assert read_turns(record, Dialogue()).turns == (Turn("user", "ho"), Turn("assistant", "seed 1 of 2"))
    with pytest.raises(SystemExit) as error:
        talk("", "--transcript", path)
    assert error.value.code == 2 and "talk.txt exists; name a new file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "message",
    [
        "x" * 2**20,
        "שלום \u202e abc",
        "👩‍👩‍👧 é",
        "<|assistant|></s>",
        "\x1b[2J\x07",
        "[bold]x[/bold] [/",
        "\u2028 \ufeff",
    ],
    ids=["megabyte", "right to left", "emoji", "role", "escape", "markup", "separator"],
)
def test_hostile_messages(talk, message):
    out = talk(message + "\n" + "hi\n")
    assert out.count("Model: ") == 2 and "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    if "[bold]" in message or "<|" in message:
        assert f"You: {message}" in out


def test_bytes_that_are_no_text(talk):
    out = talk(b"\xff\xfe hi\nhi\n")
    assert "not valid Unicode, so nothing was sent" in out and out.count("Model: ") == 1


def test_mistakes_on_the_command_line(talk, run, capsys):
    for arguments, message in [
        (["--temperature", "-1"], "temperature must be"),
        (["--max-new-tokens", "0"], "max_new_tokens must be from 1"),
        (["--seed", "-1"], "seed must be from 0"),
        (["--system", "\udcff"], "--system is not valid Unicode"),
    ]:
        with pytest.raises(SystemExit) as error:
            talk("", *arguments)
        assert error.value.code == 2 and message in capsys.readouterr().err
    short = run.config.model_copy(update=dict(model=run.config.model.model_copy(update=dict(max_length=31))))
    with pytest.raises(UserError, match="needs at least 32"):
        conversation.form(replace(run, config=short))


# A stand-in for the model, so that no test of keys waits for JAX; its reply takes as long as one waits.
STUB = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
from types import SimpleNamespace as N
stub = types.ModuleType("eval.conversation")
stub.form = lambda run: "roles"
stub.request = lambda *_: N(notes=(), max_new_tokens=9)
def reply(run, asked, *, sampling, seed, on_text):
    on_text("Well, ")
    time.sleep(0.2 if seed else 60)
    on_text("yes.")
    return N(finish="end")
stub.reply = reply
sys.modules["eval.conversation"] = stub
train_run = types.ModuleType("train.run")
train_run.load_run = lambda *_: N(directory="RUN", step=1, config=N(model=N(max_length=64)))
sys.modules["train.run"] = train_run
decoding = types.ModuleType("model.decoding")
import dataclasses
decoding.Sampling = dataclasses.make_dataclass("Sampling", ["temperature", "top_p"])
sys.modules["model.decoding"] = decoding
from eval import chat
sys.exit(chat.main(["RUN"]))
"""


def test_keys_on_a_terminal():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", STUB]
    streams = dict(stdin=theirs, stdout=theirs, stderr=theirs)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    os.close(theirs)
    shown = ""

    def wait_for(text: str, interrupt: bool = False) -> None:
        nonlocal shown
        if interrupt:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while text not in (seen := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)):
            assert time.monotonic() < deadline and process.poll() is None, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 4096).decode()
            elif interrupt:  # it came between the prompt and the waiting for a key
                process.send_signal(signal.SIGINT)
        shown = seen.partition(text)[2]

    try:
        wait_for("You: ")
        os.write(ours, b"hello\n")
        wait_for("Model: Well, ")
        wait_for("stopped", interrupt=True)
        wait_for("You: ")
        wait_for("Ctrl-D or /quit leaves", interrupt=True)
        wait_for("You: ")
        os.write(ours, b"agaim\x7fn?\n")
        wait_for("Model: Well, yes.")
        wait_for("You: ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(ours)
