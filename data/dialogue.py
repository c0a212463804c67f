"""Conversations: how records tell them, and how a decoder reads them.

The chat template, in tokens, with nothing in between:

    bos  <|system|> TEXT <|end|>  <|user|> TEXT <|end|>  <|assistant|> TEXT <|end|>  <|user|> …

The system's part is left out where there is none. A prompt ends in <|assistant|>, and the reply in <|end|>.
The four names are special tokens, which no text can spell.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from data.document import DataError
from data.records import Record, as_text
from data.task_config import Dialogue
from data.tokenizer import Tokenizer

Role = Literal["user", "assistant"]

ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END_TOKEN = "<|end|>"
TEMPLATE_TOKENS = (*ROLE_TOKENS.values(), END_TOKEN)
MIN_LENGTH = 16  # room for a system's text, a message and a reply, each cut to a few tokens

_ROLE_NAMES = ("role", "from", "speaker")
_TEXT_NAMES = ("content", "value", "message", "text")
# Role as OpenAI's, ShareGPT's and OpenAssistant's records call it → ours.
_ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model"), "assistant"),
}


class Turn(NamedTuple):
    """What one side says before the other does."""

    role: Role
    text: str


class Conversation(NamedTuple):
    """Turns in order; `system` tells the assistant what to be and may be empty."""

    turns: tuple[Turn, ...]
    system: str = ""


class Prompt(NamedTuple):
    """What a decoder reads before it writes a reply; see `prompt`.

    dropped: turns left out at the start. cut: tokens left out of the system's text and of the last turn.
    """

    tokens: list[int]
    dropped: int
    cut: int


# Records


def read_turns(record: Record, objective: Dialogue) -> Conversation:
    """Returns the conversation of a record's fields `turns` and `system`, without white space around its texts.

    `turns` is a list of texts, which speak in turn, or of objects with a role and a text, or one text that
    `objective.separator` splits; `system` is a text or its sentences. A message of the role system may stand first.
    Raises DataError that names the record's place for anything else, and for a turn without text.
    """

    def fail(problem: str) -> DataError:
        return DataError(f"{record.origin}: {problem}")

    turns, system = record.fields.get("turns"), as_text(record.fields.get("system") or "", f"{record.origin}: system")
    if isinstance(turns, str):
        if objective.separator is None:
            raise fail("turns is one text; objective.separator must say what stands between its turns")
        turns = turns.strip().removesuffix(objective.separator.strip()).split(objective.separator)
    if not isinstance(turns, list | tuple) or not turns:
        raise fail("turns must be a list of texts or of objects with role and content, and not empty")
    messages = [_message(turn, f"turn {i + 1}", fail) for i, turn in enumerate(turns)]
    first = [text for role, text in messages if role == "system"]
    if any(role == "system" for role, _ in messages[len(first) :]):
        raise fail("a message of the role system comes after a turn; it may only come first")
    said: list[Turn] = []
    for role, text in messages[len(first) :]:
        before = said[-1].role if said else None
        role = role or (objective.first if before is None else "assistant" if before == "user" else "user")
        said.append(Turn(role, text))
    _, system = _message(system, "system", fail) if system else (None, "")
    return Conversation(tuple(said), "\n".join(text for text in (system, *first) if text))


def _message(turn: Any, name: str, fail: Callable[[str], DataError]) -> tuple[str | None, str]:
    """Returns the role, if the turn says it, and the text."""
    role, text = None, turn
    if isinstance(turn, dict):
        role = next((turn[key] for key in _ROLE_NAMES if key in turn), None)
        text = next((turn[key] for key in _TEXT_NAMES if key in turn), None)
        if role is not None and str(role).lower() not in _ROLES:
            raise fail(f"{name} has the role {str(role)[:40]!r}, which is none of {', '.join(_ROLES)}")
        role = role and _ROLES[str(role).lower()]
    if not isinstance(text, str):
        raise fail(f"{name} has no text; expected a string or an object with {' or '.join(_TEXT_NAMES)}")
    if not text.strip():
        raise fail(f"{name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise fail(f"{name} is not valid Unicode: it has half a character") from None
    return role, text.strip()


# Tokens


def can_chat(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer has the special tokens of the template."""
    return set(TEMPLATE_TOKENS) <= set(tokenizer.named)


def encode(
    conversation: Conversation, tokenizer: Tokenizer, objective: Dialogue, length: int, cut: Counter[str] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns rows of (tokens, learned), int32 and bool [at most length + 1], in which every reply is learned once.

    The inputs are a row's tokens without the last, the targets those without the first, and `learned` says of each
    token whether it is a target: the texts of the replies (or of all turns, as the objective says) and the
    <|end|> after each. A conversation that is too long gives several rows: a reply is learned in the one that has
    the most of the turns before it, the latest ones and the system's text always among them.
    What is too long by itself is cut: the system's text to half of the row, a message to its end, so that half of
    the rest is left for the reply, and a reply to its start. `cut` counts it, as system or as turns.

    Raises DataError if nothing is to be learned, or nothing fits.
    """
    if length < MIN_LENGTH:
        raise DataError(f"length {length} has no room for a message and its reply; it must be at least {MIN_LENGTH}")
    turns = conversation.turns
    to_learn = [i for i, turn in enumerate(turns) if objective.learn == "all" or turn.role == "assistant"]
    if not to_learn:
        raise DataError("the conversation has no turn of the assistant, so there is nothing to learn")
    template = _Template(tokenizer)
    head, blocks, num_cut = template.blocks(turns, conversation.system, length // 2)
    room = length + 1 - len(head)
    ends = np.cumsum([0, *map(len, blocks)])
    rows: dict[tuple[int, int], list[int]] = {}  # (first turn, last turn if it is cut) → the turns learned in the row
    for last in to_learn:
        first = int(np.searchsorted(ends, ends[last + 1] - room))
        fits = first < last or first == last == 0
        rows.setdefault((first, -1) if fits else (max(last - 1, 0), last), []).append(last)
    if cut is not None:
        cut.update(system=num_cut > 0, turns=any(last >= 0 for _, last in rows))
    made = []
    for (first, last), learned in rows.items():
        row = blocks[first : learned[-1] + 1]
        if last >= 0:
            row = template.cut(row, room)
        masks = [_text_mask(block, first + i in learned) for i, block in enumerate(row)]
        made.append((np.concatenate([head, *row]), np.concatenate([np.zeros(len(head), bool), *masks])))
    return made


def _text_mask(block: np.ndarray, is_learned: bool) -> np.ndarray:
    """Returns bool [block]: True, where it is learned, for all but the role."""
    mask = np.full(len(block), is_learned)
    mask[0] = False
    return mask


def prompt(turns: Sequence[Turn], system: str, tokenizer: Tokenizer, max_tokens: int) -> Prompt:
    """Returns at most `max_tokens` tokens that ask for the assistant's next turn.

    As in `encode`, the system's text is kept, the oldest turns are dropped first, and a last turn that is too long
    by itself keeps its end. Raises DataError for fewer than `MIN_LENGTH` tokens.
    """
    if max_tokens < MIN_LENGTH:
        raise DataError(f"{max_tokens} tokens have no room for a message; a prompt needs at least {MIN_LENGTH}")
    template = _Template(tokenizer)
    head, blocks, num_cut = template.blocks(turns, system, max_tokens // 2)
    return _latest(head, blocks, [template.roles["assistant"]], max_tokens, num_cut, blocks[-1][:1])


PLAIN_NAMES = {"user": "User", "assistant": "Assistant"}


def plain_prompt(turns: Sequence[Turn], system: str, tokenizer: Tokenizer, max_tokens: int) -> Prompt:
    """Returns `prompt` for a decoder that never learned roles, as plain text:

        SYSTEM

        User: TEXT
        Assistant: TEXT
        User: TEXT
        Assistant:

    Such a model goes on as anybody, so a reply ends where the next line begins with "User:". Raises DataError where
    there is no room for the names, a token of the last turn and the end of its line.
    """
    lines = [f"{PLAIN_NAMES[turn.role]}: {turn.text}\n" for turn in turns]
    others = [f"{system}\n\n" if system else "", f"{PLAIN_NAMES[turns[-1].role]}: ", "Assistant:"]
    before, label, tail, *blocks = tokenizer.encode_batch([*others, *lines])
    least = 1 + len(label) + 2 + len(tail)
    if max_tokens < least:
        raise DataError(f"{max_tokens} tokens have no room for a message; a prompt needs at least {least}")
    kept = before[: min(max_tokens // 2, max_tokens - least)]
    head = np.concatenate([[tokenizer.bos_id], kept])
    return _latest(head, blocks, tail, max_tokens, len(before) - len(kept), label)


def _latest(
    head: np.ndarray,
    blocks: list[np.ndarray],
    tail: Sequence[int],
    max_tokens: int,
    num_cut: int,
    label: Sequence[int],
) -> Prompt:
    """Returns the head, as many of the last blocks as fit, and the tail; `num_cut` tokens are already left out.

    If not even the last block fits, its label and its end are kept.
    """
    room = max_tokens - len(head) - len(tail)
    ends = np.cumsum([0, *map(len, blocks)])
    first = int(np.searchsorted(ends, ends[-1] - room))
    kept = blocks[first:]
    if blocks and not kept:
        first, kept = first - 1, [_last_of(blocks[-1], room, label)]
        num_cut += len(blocks[-1]) - room
    return Prompt(np.concatenate([head, *kept, tail]).astype(int).tolist(), first, num_cut)


class _Template:
    """The template in the ids of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        if not can_chat(tokenizer):
            raise DataError(
                f"the tokenizer lacks the special tokens of conversations, {' '.join(TEMPLATE_TOKENS)}; "
                "objective_tokenizer adds them"
            )
        self._tokenizer = tokenizer
        self.roles = {role: tokenizer.named[name] for role, name in ROLE_TOKENS.items()}
        self._end = tokenizer.named[END_TOKEN]

    def blocks(self, turns: Sequence[Turn], system: str, max_system: int) -> tuple[np.ndarray, list[np.ndarray], int]:
        """Returns bos with the system's block, cut to `max_system` tokens, the block of each turn, and what was cut."""
        system_ids, *texts = self._tokenizer.encode_batch([system, *(turn.text for turn in turns)])
        bos, kept = np.array([self._tokenizer.bos_id], np.int32), system_ids[: max_system - 2]
        head = np.concatenate([bos, self._block("system", kept)]) if system else bos
        blocks = [self._block(turn.role, ids) for turn, ids in zip(turns, texts, strict=True)]
        return head, blocks, len(system_ids) - len(kept)

    def _block(self, role: str, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.roles[role]], ids, [self._end]]).astype(np.int32)

    def cut(self, row: list[np.ndarray], room: int) -> list[np.ndarray]:
        """Returns a reply, and the message before it if there is one, in `room` tokens."""
        *message, reply = row
        if message:
            message = [_last_of(message[0], max(room // 2, room - len(reply)), message[0][:1])]
            room -= len(message[0])
        return [*message, reply[:room]]


def _last_of(block: np.ndarray, room: int, label: Sequence[int]) -> np.ndarray:
    """Returns a turn, or where that is too long its label and its last tokens, `room` in all."""
    return block if len(block) <= room else np.concatenate([label, block[len(block) - room + len(label) :]])
