"""Text as people write it, from the tokenized text of language-model corpora.

Models of raw text are measured on such corpora after spacing is put right (Radford et al. 2019, section 3.1). Only
spaces and the corpus's own marks change, and no letter, digit or sign is lost, so that the probability of the result
is one of the original; divide it by the words of the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]  # patterns and what takes their place, in order

# Where a token begins and ends: at white space, or at a sign that has been joined to it already.
_START, _END = r"(?<![^\s\"'(\[/-])", r"(?![^\s\"')\]/-])"

_SPACING: _Rules = (
    # Contractions and possessives, also of names that were cut like them: don 't, players ' , Chang 'an.
    (r" (n't|'[^\W\d]\w*)(?!\S)", r"\1"),
    (r"(?<=\ws) '(?= \w)", "'"),
    (r"(?<!\S)' (?=\d\ds)", "'"),
    # Pairs of quotes.
    (r'(?<!\S)" ([^"\n]+?) "(?!\S)', r'"\1"'),
    (r"(?<!\S)' ([^'\n]+?) '(?!\S)", r"'\1'"),
    # What stands close to the word after it, and to the word before.
    (rf"{_START}([(\[{{]) ", r"\1"),
    (rf"{_START}([$£€¥#]) (?=\d|N\b)", r"\1"),
    (rf" ([.,;:!?%)\]}}]|\.\.\.){_END}", r"\1"),
)


def _joined_heading(match: re.Match) -> str:
    """= = Career = = as == Career ==; what has unequal marks is no heading."""
    left, title, right = match.groups()
    marks = left.replace(" ", "")
    return f"{marks} {title} {marks}" if marks == right.replace(" ", "") else match.group()


# The corpora put a space at both ends of a line.
_LINES: _Rules = ((r"(?m)^ +| +$", ""),)

_RULES: dict[str, _Rules] = {
    "wikitext": (
        (r"(?m)^ ((?:= )+)(.+?)((?: =)+) $", _joined_heading),
        (r" @([-,.])@ ", r"\1"),
        (r" ° ", "°"),
        (r" ([/⁄]) ", r"\1"),
        *_SPACING,
        *_LINES,
    ),
    "ptb": ((r"\\/", "/"), *_SPACING, *_LINES),
    "lambada": (
        (r"(?<!\S)(``|'')(?!\S)", '"'),
        (r"(?<!\S)`(?!\S)", "'"),
        *_SPACING,
        *_LINES,
    ),
    "one_billion_words": ((r" / ", "/"), *_SPACING, *_LINES),
}


def detokenize(text: str, corpus: str) -> str:
    """Returns the text as it would be written; rules reach over spaces, but not from line to line.

    wikitext: ` @-@ `, ` @,@ `, ` @.@ `, spaces around punctuation, quotes, brackets and contractions, and headings:
    ` = = Career = = ` becomes `== Career ==`. ptb: contractions, `$ N`, `\\/`; N and <unk> stay, as nobody knows what
    they were. lambada: the published lower-case form with its `` and ''. one_billion_words: punctuation and quotes.
    """
    for pattern, replacement in _RULES[corpus]:
        text = re.sub(pattern, replacement, text)
    return text
