"""Equal to seqeval, which ports conlleval, on any tags, also malformed ones."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tagging import spans_from_tags
from eval.scores import entity_f1, entity_f1_by_type, entity_macro_f1, entity_precision, entity_recall, score
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")
seqeval = pytest.importorskip("seqeval.metrics", reason="needs the eval extra")


def corpora(prefixes):
    """Predicted and right tags of some sentences, without any order."""
    tags = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("PER", "LOC"))])
    sentences = st.lists(st.lists(st.tuples(tags, tags), max_size=8), min_size=1, max_size=5)
    return sentences.map(lambda s: tuple([[pair[side] for pair in pairs] for pairs in s] for side in (0, 1)))


@settings(max_examples=60, deadline=None)
@given(corpus=corpora("BIES"))
def test_equal_to_conlleval_on_any_tags(corpus):
    predicted, actual = corpus
    sides = [[set(spans_from_tags(tags, "conlleval")) for tags in side] for side in (predicted, actual)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ours, theirs, average in (
            (entity_f1, seqeval.f1_score, "micro"),
            (entity_precision, seqeval.precision_score, "micro"),
            (entity_recall, seqeval.recall_score, "micro"),
            (entity_macro_f1, seqeval.f1_score, "macro"),
        ):
            # Without any entity, its macro average is the mean of nothing.
            if any(map(any, sides)) or average == "micro":
                expected = theirs(actual, predicted, average=average)
                assert ours(*sides).value == pytest.approx(expected, abs=1e-12)
        by_type = {kind: measure.value for kind, measure in entity_f1_by_type(*sides).items()}
        if by_type:
            assert list(by_type.values()) == pytest.approx(seqeval.f1_score(actual, predicted, average=None))


def test_a_corpus_of_several_sentences_by_hand():
    references = [{("PER", 0, 2), ("LOC", 3, 4)}, set(), {("PER", 1, 2)}]
    predictions = [{("PER", 0, 2), ("LOC", 2, 4)}, {("PER", 0, 1)}, {("LOC", 1, 2)}]
    assert entity_precision(predictions, references).value == pytest.approx(1 / 4)
    assert entity_recall(predictions, references).value == pytest.approx(1 / 3)
    assert entity_f1(predictions, references).value == pytest.approx(2 / 7)
    assert entity_macro_f1(predictions, references).value == pytest.approx((0 + 2 / 4) / 2)
    assert score(entity_f1(predictions, references)).low == 0


def test_a_resample_is_scored_as_its_sentences():
    generator = np.random.default_rng(0)
    tags = ["O", "B-PER", "I-PER", "B-LOC"]
    predicted, actual = ([generator.choice(tags, 6).tolist() for _ in range(20)] for _ in range(2))
    counts = generator.multinomial(20, np.ones(20) / 20, size=3)
    sides = [[set(spans_from_tags(sentence, "conlleval")) for sentence in side] for side in (predicted, actual)]
    for row, value in zip(counts, entity_f1(*sides).values(counts.astype(float)), strict=True):
        chosen = np.repeat(np.arange(20), row)
        assert value == pytest.approx(seqeval.f1_score([actual[i] for i in chosen], [predicted[i] for i in chosen]))


def test_no_entities_at_all():
    for metric in (entity_f1, entity_macro_f1, entity_precision, entity_recall):
        assert score(metric([set(), set()], [set(), set()])).value == 0
    assert entity_f1_by_type([set()], [set()]) == {}
    with pytest.raises(UserError, match="entity_f1: 1 predictions do not go with 0 references"):
        entity_f1([set()], [])
