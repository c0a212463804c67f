"""A run's model as one side of a conversation: what it reads before it replies, and where the reply ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from data import dialogue
from data.dialogue import Turn
from data.task_encoding import target_tokenizer
from eval.batch_decoding import Prompt
from eval.completion import Completion, generate
from eval.source_reader import SourceReader, reads_sources
from model.decoding import Sampling
from model.transformer import Decoder, EncoderDecoder
from train.config import UserError
from train.run import Run

Form = Literal["roles", "plain", "sources"]


class Request(NamedTuple):
    """What is asked of the model; `notes` tell what it will not read."""

    prompt: list[int] | Prompt
    eos_id: int | None
    stop: tuple[str, ...]
    max_new_tokens: int
    notes: tuple[str, ...]


def form(run: Run) -> Form:
    """How the model converses; raises UserError if it cannot.

    roles: by the chat template of `data.dialogue`, as a run with the objective dialogue has learned. plain: a decoder
    without roles continues a text that reads like a conversation, see `data.dialogue.plain_prompt`. sources: an
    encoder–decoder, or a decoder that learned texts from texts, answers each message by itself.
    """
    if not isinstance(run.model, Decoder | EncoderDecoder):
        raise UserError(f"{run.directory} has an encoder, which reads text but writes none; chat needs a decoder")
    if run.config.model.max_length < 2 * dialogue.MIN_LENGTH:
        raise UserError(
            f"{run.directory} reads {run.config.model.max_length} tokens at once; "
            f"a conversation needs at least {2 * dialogue.MIN_LENGTH}"
        )
    if reads_sources(run):
        return "sources"
    return "roles" if dialogue.can_chat(run.tokenizer) else "plain"


def request(run: Run, turns: Sequence[Turn], system: str, max_new_tokens: int) -> Request:
    """What asks for the assistant's next turn after `turns`, the last of which is the user's.

    The prompt leaves room for the reply, and at least half of the context: the oldest turns are dropped first.
    """
    length, kind = run.config.model.max_length, form(run)
    if kind == "sources":
        source, cut = SourceReader(run).read(turns[-1].text, max_new_tokens)
        return Request(source, None, (), min(max_new_tokens, length - len(source[1])), _notes(0, cut, length))
    make = dialogue.prompt if kind == "roles" else dialogue.plain_prompt
    asked = make(turns, system, run.tokenizer, max(length - max_new_tokens, length // 2))
    eos_id = run.tokenizer.named[dialogue.END_TOKEN] if kind == "roles" else None
    stop = () if kind == "roles" else (f"\n{dialogue.PLAIN_NAMES['user']}:",)
    room = length - len(asked.tokens)
    notes = _notes(asked.dropped, asked.cut, length)
    return Request(asked.tokens, eos_id, stop, min(max_new_tokens, room), notes)


def _notes(dropped: int, cut: int, length: int) -> tuple[str, ...]:
    notes = []
    if dropped:
        turns = "1 turn is" if dropped == 1 else f"{dropped} turns are"
        notes.append(f"the context of {length} tokens is full: the oldest {turns} no longer read")
    if cut:
        notes.append(f"{cut:,} tokens do not fit into the context of {length} and are not read")
    return tuple(notes)


def reply(run: Run, asked: Request, *, sampling: Sampling, seed: int, on_text: Callable[[str], None]) -> Completion:
    """The model's turn, streamed to `on_text`."""
    [completion] = generate(
        run.model,
        run.params,
        target_tokenizer(run.tokenizer),
        [asked.prompt],
        sampling=sampling,
        seed=seed,
        max_new_tokens=asked.max_new_tokens,
        stop=asked.stop,
        eos_id=asked.eos_id,
        is_prefix=run.reads_prefixes,
        on_text=lambda _, text: on_text(text),
    )
    return completion
