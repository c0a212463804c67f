"""Scores of extracted answers, computed as the official programs of SQuAD and CMRC 2018 do."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

from eval.scores.inputs import References, library, text_pairs
from eval.scores.measure import Measure, mean

Version = Literal["1.1", "2.0"]


def squad_exact_match(predictions: Sequence[str], references: References, *, version: Version = "1.1") -> Measure:
    """SQuAD's exact match, 0 to 100 (Rajpurkar et al. 2016, section 6.1; 2018).

    Args:
      predictions: one text per question; in version 2.0 "" says that there is no answer.
      references: the right answers of each question, of which the best counts; in version 2.0 none (an empty list)
        where there is no answer.
      version: of the official program. They differ in questions without an answer.
    """
    return _squad("squad_exact_match", "exact match", _equal, predictions, references, version)


def squad_f1(predictions: Sequence[str], references: References, *, version: Version = "1.1") -> Measure:
    """SQuAD's F1 of words, 0 to 100; arguments as of `squad_exact_match`."""
    return _squad("squad_f1", "F1 of words", _word_f1, predictions, references, version)


def cmrc_exact_match(predictions: Sequence[str], references: References) -> Measure:
    """CMRC 2018's exact match of Chinese answers, 0 to 100 (Cui et al. 2019, section 4.1)."""
    return _cmrc("cmrc_exact_match", "exact match", _equal, _cmrc_text, predictions, references)


def cmrc_f1(predictions: Sequence[str], references: References) -> Measure:
    """CMRC 2018's F1 of Chinese answers, 0 to 100: of their longest common run of Chinese characters and words.

    The words of other scripts are NLTK's; the official program also cuts such text into sentences first, which
    matters only for a full stop within it.
    """
    return _cmrc("cmrc_f1", "F1 of the longest common run", _run_f1, _segmenter(), predictions, references)


def _squad(
    name: str, what: str, metric: Callable, predictions: Sequence[str], references: References, version: Version
) -> Measure:
    values = []
    for prediction, right in text_pairs(name, predictions, references, may_lack=version == "2.0"):
        answers = [_squad_words(text) for text in right]
        if version == "2.0":
            answers = [answer for answer in answers if answer]
        words = _squad_words(prediction)
        # Where there is no answer, it is right to give none.
        values.append(100 * max((metric(words, answer) for answer in answers), default=float(not words)))
    protocol = (
        f"SQuAD {version} {what}, 0 to 100: lower case, without ASCII punctuation and articles, "
        f"best of the references, mean over questions"
    )
    return mean(name, values, protocol)


def _cmrc(
    name: str, what: str, metric: Callable, prepare: Callable, predictions: Sequence[str], references: References
) -> Measure:
    pairs = text_pairs(name, predictions, references)
    values = [100 * max(metric(prepare(text), prepare(answer)) for answer in right) for text, right in pairs]
    protocol = (
        f"CMRC 2018 {what}, 0 to 100: lower case, without punctuation, Chinese characters and NLTK's words of other "
        f"scripts, best of the references, mean over questions"
    )
    return mean(name, values, protocol)


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _squad_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


# What CMRC 2018 drops. The program names a double ellipsis too, but looks at single characters and never finds it.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def _cmrc_text(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def _segmenter() -> Callable[[str], list[str]]:
    words = library("nltk.tokenize").NLTKWordTokenizer()

    def segment(text: str) -> list[str]:
        parts = groupby(_cmrc_text(text), lambda character: "\u4e00" <= character <= "\u9fa5")
        runs = [(chinese, "".join(run)) for chinese, run in parts]
        return [token for chinese, run in runs for token in (run if chinese else words.tokenize(run))]

    return segment


def _equal(a: Sequence[str], b: Sequence[str]) -> float:
    return float(a == b)


def _word_f1(predicted: list[str], right: list[str]) -> float:
    return _f1(sum((Counter(predicted) & Counter(right)).values()), predicted, right)


def _run_f1(predicted: list[str], right: list[str]) -> float:
    return _f1(_longest_common_run(predicted, right), predicted, right)


def _f1(common: int, predicted: list[str], right: list[str]) -> float:
    # The programs' 2pr / (p + r), where p = common / len(predicted) and r = common / len(right).
    return 2 * common / (len(predicted) + len(right)) if common else 0.0


def _longest_common_run(a: list[str], b: list[str]) -> int:
    """Length of the longest list that is part of both without a gap."""
    longest, lengths = 0, [0] * (len(b) + 1)
    for token in a:
        # lengths[j]: of the common run that ends with the token before `token` in a, and with b[j - 1].
        lengths = [0, *(lengths[j] + 1 if token == other else 0 for j, other in enumerate(b))]
        longest = max(longest, *lengths)
    return longest
