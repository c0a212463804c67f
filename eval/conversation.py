"""A run's model as one side of a conversation: what it reads before it replies, and where the reply ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from data import dialogue
from data.dialogue import Prompt, Turn
from data.task_config import TextToText
from data.task_encoding import target_tokenizer
from eval.completion import Completion, generate
from model.decoding import Sampling
from model.transformer import Decoder, EncoderDecoder
from train.config import UserError
from train.run import Run

Form = Literal["roles", "plain", "sources"]


class Request(NamedTuple):
    """What is asked of the model; `notes` tell what it will not read."""

    prompt: list[int]
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


def reads_sources(run: Run) -> bool:
    """Whether the model writes a text from a text, each with an end of its own."""
    return isinstance(run.model, EncoderDecoder) or isinstance(run.config.objective, TextToText)


def before_target(run: Run) -> list[int]:
    """What a decoder that reads a source itself reads after it, before the target."""
    start = run.config.model.decoder_start_id
    return [run.tokenizer.eos_id, run.tokenizer.bos_id if start is None else start]


def request(run: Run, turns: Sequence[Turn], system: str, max_new_tokens: int) -> Request:
    """What asks for the assistant's next turn after `turns`, the last of which is the user's.

    The prompt leaves room for the reply, and at least half of the context: the oldest turns are dropped first.
    """
    length, kind = run.config.model.max_length, form(run)
    if kind == "sources":
        return _source(run, turns[-1].text, max_new_tokens)
    make = dialogue.prompt if kind == "roles" else dialogue.plain_prompt
    asked = make(turns, system, run.tokenizer, max(length - max_new_tokens, length // 2))
    eos_id = run.tokenizer.named[dialogue.END_TOKEN] if kind == "roles" else None
    stop = () if kind == "roles" else (f"\n{dialogue.PLAIN_NAMES['user']}:",)
    room = length - len(asked.tokens)
    return Request(asked.tokens, eos_id, stop, min(max_new_tokens, room), _notes(asked, length))


def _source(run: Run, message: str, max_new_tokens: int) -> Request:
    """A decoder reads the source and then writes in the same context, an encoder–decoder has one for each."""
    length, tokenizer = run.config.model.max_length, run.tokenizer
    has_encoder = isinstance(run.model, EncoderDecoder)
    ends = [tokenizer.eos_id] if has_encoder else before_target(run)
    room = length if has_encoder else max(length - max_new_tokens, length // 2)
    tokens = tokenizer.encode(getattr(run.config.objective, "prefix", "") + message).tolist()
    kept = tokens[: room - len(ends)]
    asked = Prompt([*kept, *ends], 0, len(tokens) - len(kept))
    left = length - 1 if has_encoder else length - len(asked.tokens)
    return Request(asked.tokens, None, (), min(max_new_tokens, left), _notes(asked, length))


def _notes(asked: Prompt, length: int) -> tuple[str, ...]:
    notes = []
    if asked.dropped:
        turns = "1 turn is" if asked.dropped == 1 else f"{asked.dropped} turns are"
        notes.append(f"the context of {length} tokens is full: the oldest {turns} no longer read")
    if asked.cut:
        notes.append(f"{asked.cut:,} tokens do not fit into the context of {length} and are not read")
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
