"""Tokens → text while they come, holding back what is not certain; and text that is safe on a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from data.tokenizer import Tokenizer

# A character has at most 4 bytes, so an unfinished one shows as at most 3 replacement characters.
_REPLACEMENT, _MAX_UNFINISHED = "\ufffd", 3
# Enough tokens to decode the next ones as if the whole text stood before them.
_CONTEXT_TOKENS = 8


class TextStream:
    """The text of one row, piece by piece.

    Held back are the bytes of an unfinished character, and an end that may become a stop string. A stop
    string and what follows it never come out; `stopped` is then True.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], stop: Sequence[str]):
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens = list(context[-_CONTEXT_TOKENS:])
        self._num_decoded = len(tokenizer.decode(self._tokens))  # characters of them that are no longer wanted
        self._waiting = ""  # decoded, but perhaps the start of a stop string

    def push(self, tokens: Sequence[int], *, last: bool) -> str:
        """The text that `tokens` make certain; with `last`, all that is left."""
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens)
        unfinished = 0 if last else min(len(text) - len(text.rstrip(_REPLACEMENT)), _MAX_UNFINISHED)
        self._waiting += text[self._num_decoded : len(text) - unfinished]
        self._tokens = self._tokens[-_CONTEXT_TOKENS:]
        self._num_decoded = len(self._tokenizer.decode(self._tokens)) - unfinished
        if found := [at for stop in self._stop if (at := self._waiting.find(stop)) >= 0]:
            self.stopped = True
            return self._waiting[: min(found)]
        end = len(self._waiting) - (0 if last else self._length_of_stop_begun())
        certain, self._waiting = self._waiting[:end], self._waiting[end:]
        return certain

    def _length_of_stop_begun(self) -> int:
        """How many characters at the end may become a stop string."""
        begun = (n for stop in self._stop for n in range(1, len(stop)) if self._waiting.endswith(stop[:n]))
        return max(begun, default=0)


# All control characters but newline and tab, and those that turn the direction of text around.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""`text` with characters that could steer a terminal or a page written out, as \x1b."""
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def escaped(text: str) -> str:
    """`printable` text as HTML."""
    return html.escape(printable(text))
