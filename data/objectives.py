"""What an objective needs: special tokens, and how much text makes an example of a given length.

The objectives themselves are in `denoising.py` and `masking.py`, the arrays that they fill in `batches.py`.
"""

import math
from typing import Literal

from data import denoising, dialogue
from data.config import (
    UL2,
    CausalLM,
    Dialogue,
    GapSentences,
    MaskedLM,
    Objective,
    PrefixLM,
    ReplacedTokens,
    SpanCorruption,
    TextInfilling,
)
from data.document import DataError
from data.tokenizer import Tokenizer, with_specials

Stack = Literal["decoder", "encoder", "encoder_decoder"]

_NUM_SENTINELS = 100  # T5's


def objective_tokenizer(tokenizer: Tokenizer, objective: Objective, length: int = 512) -> Tokenizer:
    """Returns `tokenizer` with the special tokens that the objective needs and it lacks; see `with_specials`.

    Args:
      length: tokens of an example's input; very long ones have more spans than T5's 100 sentinels can name.
    """
    if isinstance(objective, MaskedLM | ReplacedTokens | TextInfilling | GapSentences):
        return with_specials(tokenizer, mask=True)
    if isinstance(objective, SpanCorruption | UL2):
        names = denoising.MODES if isinstance(objective, UL2) and objective.mode_tokens else ()
        num_sentinels = max(_NUM_SENTINELS, _num_spans(objective, text_length(objective, length, "encoder_decoder")))
        return with_specials(tokenizer, num_sentinels=num_sentinels, names=names)
    if isinstance(objective, Dialogue):
        return with_specials(tokenizer, names=dialogue.TEMPLATE_TOKENS)
    return tokenizer


def num_static_masks(objective: Objective) -> int | None:
    """Returns how many masks a text has in all, or None where every epoch has other ones."""
    return objective.duplicates if isinstance(objective, MaskedLM | ReplacedTokens) else None


# Lengths


def text_length(objective: Objective, length: int, stack: Stack, target_length: int | None = None) -> int:
    """Returns how many tokens of text go into one example, so that it fills `length` but never exceeds it.

    T5's inputs of 512 tokens, for example, are made of 568. Raises DataError if not even one token fits.
    """
    if isinstance(objective, CausalLM) or (isinstance(objective, PrefixLM) and stack != "encoder_decoder"):
        return length
    if isinstance(objective, MaskedLM | ReplacedTokens):
        specials = 3 if has_pairs(objective) else 2
        return _at_least_one(length - specials, objective, length)

    def fits(tokens: int) -> bool:
        lengths = example_lengths(objective, tokens)
        if stack == "encoder_decoder":
            most = target_length or math.inf
            return all(inputs <= length and targets <= most for inputs, targets in lengths)
        return all(inputs + targets <= length for inputs, targets in lengths)

    if isinstance(objective, PrefixLM):  # where it is cut depends on the room
        return _at_least_one(min(length, length + (target_length or length) - 2), objective, length)
    least, most = 0, 1
    while fits(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return _at_least_one(least, objective, length)


def derived_target_length(objective: Objective, length: int) -> int:
    """Returns the tokens of the longest target that inputs of `length` tokens have, </s> included."""
    if isinstance(objective, PrefixLM):
        return length
    tokens = text_length(objective, length, "encoder_decoder")
    return max(targets for _, targets in example_lengths(objective, tokens))


def example_lengths(objective: Objective, tokens: int) -> list[tuple[int, int]]:
    """Returns the lengths of inputs and targets, </s> included, of each task for a text of so many tokens."""
    if isinstance(objective, SpanCorruption):
        return [denoising.span_lengths(tokens, objective.rate, objective.mean_span)]
    if isinstance(objective, UL2):
        return [(inputs + objective.mode_tokens, targets) for inputs, targets in denoising.ul2_lengths(tokens)]
    if isinstance(objective, GapSentences):
        return [(tokens + 1, math.ceil(objective.rate * tokens) + 1)]
    return [(tokens + 1, tokens + 1)]  # text infilling


def _num_spans(objective: SpanCorruption | UL2, tokens: int) -> int:
    if isinstance(objective, SpanCorruption):
        return denoising.span_counts(tokens, objective.rate, objective.mean_span)[1]
    return max(denoising.span_counts(tokens, rate, mean)[1] for _, mean, rate in denoising.UL2_SPANS)


def has_pairs(objective: Objective) -> bool:
    return isinstance(objective, MaskedLM) and objective.sentence_pairs != "none"


def _at_least_one(tokens: int, objective: Objective, length: int) -> int:
    if tokens < 1:
        raise DataError(f"length {length} has no room for a single token of text with the objective {objective.kind}")
    return tokens
