"""Equal to sacreBLEU and rouge-score, on the corpus and on resamples; answers in any script."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scores import bleu, chrf, compare, compound_split_bleu, exact_match, rouge, score, token_f1
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")
sacrebleu = pytest.importorskip("sacrebleu.metrics", reason="needs the eval extra")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the eval extra")

PREDICTIONS = ["The cat sat on the mat.", "A state-of-the-art model, 3.5 times faster!", "", "你好，世界 👍🏽", " "]
REFERENCES = ["The cat is on the mat.", "A state-of-the-art model is 3 times faster.", "something", "你好，世界！", ""]
MORE = ["There is a cat on the mat.", "The model is faster.", "some thing", "您好世界", "x"]
WORDS = st.lists(
    st.sampled_from(["the", "cat", "rich-text", "sat", ".", "3.5", "北京", "é", "مرحبا", "\n"]), max_size=9
)
PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=6)


@pytest.mark.parametrize("tokenize", ["13a", "intl", "zh", "char", "none"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_equals_sacrebleu_with_its_signature(tokenize, lowercase):
    theirs = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase)
    expected = theirs.corpus_score(PREDICTIONS, [REFERENCES, MORE])
    measure = bleu(PREDICTIONS, list(zip(REFERENCES, MORE, strict=True)), tokenize=tokenize, lowercase=lowercase)
    assert measure.value == pytest.approx(expected.score, rel=1e-12)
    assert measure.protocol == f"sacreBLEU {theirs.get_signature()}"
    assert "nrefs:2" in measure.protocol and f"tok:{tokenize}" in measure.protocol


@settings(max_examples=25, deadline=None)
@given(pairs=PAIRS)
def test_bleu_and_chrf_of_resamples_equal_sacrebleu(pairs):
    predictions, references, more = map(list, zip(*pairs, strict=True))
    lists = [[a] if i % 2 else [a, b] for i, (a, b) in enumerate(zip(references, more, strict=True))]
    counts = np.random.default_rng(0).multinomial(len(pairs), np.ones(len(pairs)) / len(pairs), size=3)
    for ours, theirs in ((bleu, sacrebleu.BLEU(force=True)), (chrf, sacrebleu.CHRF())):
        measure = ours(predictions, lists)
        for row, value in zip(counts, measure.values(counts.astype(float)), strict=True):
            chosen = np.repeat(np.arange(len(pairs)), row)
            streams = [[references[i] for i in chosen], [None if i % 2 else more[i] for i in chosen]]
            assert value == pytest.approx(theirs.corpus_score([predictions[i] for i in chosen], streams).score)


def test_bleu_says_nothing_about_tokenized_text(capfd):
    score(bleu(["a b c d ."] * 150, ["a b c d ."] * 150))
    assert capfd.readouterr() == ("", "")


def test_chrf_with_words():
    theirs = sacrebleu.CHRF(word_order=2)
    measure = chrf(PREDICTIONS, REFERENCES, word_order=2)
    assert measure.value == pytest.approx(theirs.corpus_score(PREDICTIONS, [REFERENCES]).score)
    assert measure.name == "chrf++" and str(theirs.get_signature()) in measure.protocol


def test_compound_splitting_is_what_the_script_of_the_transformer_does():
    """A compound counts as its parts, on both sides; single letters are cut once, as by the script's expression."""
    prediction = "Der rich-text Text - und A-B-C bleibt so ."
    split = "Der rich ##AT##-##AT## text Text - und A ##AT##-##AT## B-C bleibt so ."
    plain = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
    reference = "Der rich-text Editor - und A-B-C bleibt genau so ."
    split_reference = "Der rich ##AT##-##AT## text Editor - und A ##AT##-##AT## B-C bleibt genau so ."
    measure = compound_split_bleu([prediction], [reference], tokenize="none")
    assert measure.value == pytest.approx(plain.corpus_score([split], [[split_reference]]).score)
    assert measure.value > bleu([prediction], [reference]).value
    detokenized = compound_split_bleu([prediction.replace(" .", ".")], [reference.replace(" .", ".")])
    assert detokenized.value == pytest.approx(measure.value)
    assert "##AT##-##AT##" in measure.protocol and "smooth:none" in measure.protocol


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("tokenize", ["words", "stems"])
@settings(max_examples=10, deadline=None)
@given(pairs=PAIRS)
def test_rouge_equals_rouge_score(kind, tokenize, pairs):
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=tokenize == "stems")
    expected = [scorer.score_multi([a, b], prediction)[kind].fmeasure for prediction, a, b in pairs]
    measure = rouge([p for p, _, _ in pairs], [[a, b] for _, a, b in pairs], kind=kind, tokenize=tokenize)
    assert measure.value == pytest.approx(np.mean(expected))


def test_rouge_sums_over_lines_and_reads_chinese_by_character(capfd):
    one, two = "the cat sat\nthe dog ran", "the dog ran\nthe cat sat"
    assert rouge([one], [two], kind="rougeLsum").value == 1 > rouge([one], [two], kind="rougeL").value
    running = {
        how: rouge(["running cats"], ["run cat"], kind="rouge1", tokenize=how).value for how in ("words", "stems")
    }
    assert running == {"words": 0, "stems": 1}
    prediction, reference = "今天 天气好", "今天天气不好"
    assert rouge([prediction], [reference], kind="rouge1").value == 0
    assert rouge([prediction], [reference], kind="rouge1", tokenize="characters").value == pytest.approx(10 / 11)
    assert rouge([prediction], [reference], kind="rouge2", tokenize="characters").value == pytest.approx(6 / 9)
    assert capfd.readouterr() == ("", "")


def test_generated_answers_in_any_script():
    assert exact_match([" Paris\n", "paris"], [["London", "Paris"], "Paris"]).value == 0.5
    assert token_f1(["The Eiffel Tower!"], ["eiffel tower"]).value == pytest.approx(0.8)
    assert token_f1(["नमस्ते दुनिया"], ["नमस्ते, दुनिया"]).value == 1  # combining vowel signs stay in their words
    assert token_f1(["مرحبا"], ["مرحبا؟"]).value == 1
    assert token_f1(["北京，大学"], ["北京大学生"], tokenize="characters").value == pytest.approx(8 / 9)
    assert token_f1(["", "...", "x"], ["", "", ""]).value == pytest.approx(2 / 3)


def test_the_better_translation_is_found():
    references = [f"the {a} {b} sat on the {c} mat" for a in "abcd" for b in "efgh" for c in "ij"]
    good = [text.replace("the", "a", 1) for text in references]
    bad = [text.replace("sat", "is", 1).replace("mat", "rug") for text in references]
    assert compare(bleu(good, references), bleu(bad, references)).better == "first"


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    for call in (lambda: bleu(["a"], ["a"]), lambda: rouge(["a"], ["a"], kind="rouge1")):
        with pytest.raises(UserError, match=r"pip install 'quire\[eval\]'"):
            call()


@pytest.mark.parametrize("metric", [bleu, chrf, exact_match, token_f1, compound_split_bleu])
def test_mistakes_are_one_sentence(metric):
    for predictions, references, sentence in (
        (["a"], ["a", "b"], "1 predictions do not go with 2 references"),
        ([], [], "there are no examples"),
        (["a"], [[]], "example 0 has no reference"),
    ):
        with pytest.raises(UserError, match=f"{metric.__name__}: {sentence}"):
            metric(predictions, references)
