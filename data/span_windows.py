"""A question and the windows of a long context, as rows of an encoder (Devlin et al. 2019, section 4.2)."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.task_config import SpanAnswering


def context_tokens(text: str, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first character of each token and the one after its last, without white space at its ends.

    Args:
      offsets: int [tokens, 2], as `Tokenizer.encode_with_offsets` gives them.
    """
    is_space = np.array([character.isspace() for character in text] + [False], bool)
    places = np.arange(len(text) + 1)
    next_text = np.minimum.accumulate(np.where(is_space, len(text), places)[::-1])[::-1]
    last_text = np.maximum.accumulate(np.append(0, np.where(is_space[:-1], 0, places[1:])))
    starts = np.minimum(next_text[offsets[:, 0]], offsets[:, 1])
    return starts, np.maximum(last_text[offsets[:, 1]], starts)


def answer_tokens(starts: np.ndarray, ends: np.ndarray, first: int, end: int) -> tuple[int, int] | None:
    """Returns the first and last token of characters first … end - 1, or None where no token stands for any."""
    touched = np.flatnonzero((starts < end) & (ends > first))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


def windows(num_tokens: int, room: int, objective: SpanAnswering) -> Iterator[tuple[int, int]]:
    """Yields (first, end) of windows of at most `room` tokens that hold every token; one of an empty context."""
    first = 0
    while True:
        end = min(first + room, num_tokens)
        yield first, end
        if end == num_tokens:
            return
        first += min(objective.stride, room)


def target_in_window(answer: tuple[int, int] | None, first: int, end: int, offset: int) -> Sequence[int]:
    """Returns the places of an answer's first and last token in a row, (0, 0) where the window does not hold both.

    Args:
      answer: tokens of the context.
      offset: place of the window's first token in the row.
    """
    if answer is None or not first <= answer[0] <= answer[1] < end:
        return 0, 0
    return answer[0] - first + offset, answer[1] - first + offset
