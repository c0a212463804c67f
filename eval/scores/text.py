"""Scores of generated text: BLEU and chrF by sacreBLEU, ROUGE by rouge-score, F1 and exact match of answers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from eval.scores.inputs import References, library, text_pairs
from eval.scores.measure import Measure, mean

BleuTokens = Literal["13a", "intl", "zh", "char", "none"]
Tokens = Literal["words", "characters"]


def bleu(
    predictions: Sequence[str], references: References, *, tokenize: BleuTokens = "13a", lowercase: bool = False
) -> Measure:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002; Post 2018), of text that is not tokenized.

    Args:
      references: one text or several per example; several are counted together.
      tokenize: sacreBLEU's tokenizer: 13a for most languages, zh for Chinese, char for every character (Japanese),
        none for text that is tokenized.
      lowercase: whether case is ignored.
    """
    pairs = text_pairs("bleu", predictions, references)
    metric = library("sacrebleu.metrics").BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    return _sacrebleu("bleu", metric, pairs)


def compound_split_bleu(
    predictions: Sequence[str], references: References, *, tokenize: Literal["13a", "none"] = "13a"
) -> Measure:
    """The BLEU that "Attention Is All You Need" reports for English to German: compounds count as their parts.

    Their evaluation script tokenizes with Moses, writes x-y as x ##AT##-##AT## y on both sides and calls
    multi-bleu.perl, which respects case and smooths nothing. Here sacreBLEU's 13a takes the place of Moses, and like
    it keeps x-y one word; with "none", give text that Moses has tokenized.
    """
    metrics = library("sacrebleu.metrics")
    tokens = metrics.BLEU(tokenize=tokenize, force=True).tokenizer

    def split(text: str) -> str:
        return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", tokens(text.rstrip()))

    pairs = text_pairs("compound_split_bleu", predictions, references)
    pairs = [(split(prediction), [split(text) for text in right]) for prediction, right in pairs]
    metric = metrics.BLEU(tokenize="none", smooth_method="none", force=True)
    return _sacrebleu("compound_split_bleu", metric, pairs, f"{tokenize} tokens, x-y as x ##AT##-##AT## y, then ")


def chrf(predictions: Sequence[str], references: References, *, word_order: int = 0) -> Measure:
    """Corpus chrF, 0 to 100 (Popović 2015); chrF++ with `word_order` 2. The best of several references counts."""
    pairs = text_pairs("chrf", predictions, references)
    name = "chrf" + "+" * word_order
    return _sacrebleu(name, library("sacrebleu.metrics").CHRF(word_order=word_order), pairs)


def rouge(
    predictions: Sequence[str],
    references: References,
    *,
    kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"],
    tokenize: Literal["words", "stems", "characters"] = "words",
) -> Measure:
    """The mean F1 of ROUGE, 0 to 1 (Lin 2004), of the best of several references.

    Args:
      kind: of single words, pairs, or the longest common subsequence: of the text, or of its lines (rougeLsum).
      tokenize: rouge-score's words (ASCII letters and digits only, so nothing of Chinese), their Porter stems, or
        every character but white space.
    """
    pairs = text_pairs(kind, predictions, references)
    tokens = _CharacterTokens() if tokenize == "characters" else None
    scorer = library("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=tokenize == "stems", tokenizer=tokens)
    values = [scorer.score_multi(right, prediction)[kind].fmeasure for prediction, right in pairs]
    protocol = f"{_version('rouge-score')} {kind} F1, {tokenize}, best of the references, mean over examples"
    return mean(kind, values, protocol)


def exact_match(predictions: Sequence[str], references: References) -> Measure:
    """The fraction of texts that equal one of their references, but for white space around them."""
    pairs = text_pairs("exact_match", predictions, references)
    values = [text.strip() in [answer.strip() for answer in right] for text, right in pairs]
    return mean("exact_match", values, "fraction equal to a reference, without white space around")


def token_f1(predictions: Sequence[str], references: References, *, tokenize: Tokens = "words") -> Measure:
    """The mean F1 of the tokens that a text shares with the best of its references; 1 where both have none.

    In any script: case is folded, `words` are what stands between white space, without the punctuation around them,
    and `characters` all but white space and punctuation.
    """
    values = []
    for prediction, right in text_pairs("token_f1", predictions, references):
        tokens = _tokens(prediction, tokenize)
        values.append(max(_overlap(tokens, _tokens(text, tokenize)) for text in right))
    protocol = f"F1 of {tokenize}, case folded, no punctuation, best of the references, mean over examples"
    return mean("token_f1", values, protocol)


def _sacrebleu(name: str, metric: Any, pairs: list[tuple[str, list[str]]], before: str = "") -> Measure:
    """A sacreBLEU score of sums, by the functions of its own bootstrap, which have no public names."""
    hypotheses = [prediction for prediction, _ in pairs]
    streams = list(zip_longest(*(right for _, right in pairs)))  # of first, second, … references; None where one lacks
    rows = metric._extract_corpus_statistics(hypotheses, streams) if pairs else np.empty((0, 1))

    def combine(sums: np.ndarray) -> np.ndarray:
        # The library changes the list that it is given.
        return np.array([metric._compute_score_from_stats(row).score for row in np.rint(sums).astype(int).tolist()])

    protocol = f"{before}sacreBLEU {metric.get_signature()}" if pairs else ""
    return Measure(name, protocol, np.asarray(rows, np.float64), combine)


class _CharacterTokens:
    """rouge-score's tokenizer protocol."""

    def tokenize(self, text: str) -> list[str]:
        return list("".join(text.split()))


def _version(package: str) -> str:
    from importlib.metadata import version

    return f"{package} {version(package)}"


def _tokens(text: str, tokenize: Tokens) -> list[str]:
    parts = text.casefold().split()
    if tokenize == "characters":
        return [character for part in parts for character in part if not _is_punctuation(character)]
    return [word for part in parts if (word := _bare(part))]


def _bare(word: str) -> str:
    """The word without punctuation at its ends."""
    kept = [i for i, character in enumerate(word) if not _is_punctuation(character)]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def _overlap(a: list[str], b: list[str]) -> float:
    if not a and not b:
        return 1.0
    return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b))
