"""A document, the error a user can cause, and the record of what was skipped."""

from collections.abc import Callable
from typing import Literal, NamedTuple


class DataError(Exception):
    """A user's mistake or bad input, told in one sentence: where, what was wrong, what was expected."""


class Document(NamedTuple):
    """One text and where it came from, for example `corpus/a.jsonl:17`."""

    text: str
    origin: str


class Skipped:
    """Counts records that were skipped and keeps the first messages.

    Attributes:
      count: number of skipped records.
      messages: the first `MAX_MESSAGES` reasons, each naming its file and line.
    """

    MAX_MESSAGES = 10

    def __init__(self):
        self.count = 0
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        self.count += 1
        if len(self.messages) < self.MAX_MESSAGES:
            self.messages.append(message)

    def handler(self, on_error: Literal["fail", "skip"]) -> Callable[[str], None]:
        """Returns what takes the message of a bad record: raises it as DataError, or adds it."""
        return self.add if on_error == "skip" else _refuse


def _refuse(message: str) -> None:
    raise DataError(message)
