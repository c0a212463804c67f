"""Spans and tags: round trips in every scheme, and what becomes of tags out of place."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.document import DataError
from data.tagging import Span, convert, spans_from_tags, tags_from_spans

SCHEMES = ("iob1", "iob2", "iobes")


@st.composite
def spans_and_length(draw):
    """Spans that do not overlap, many of them side by side."""
    cuts = sorted(draw(st.sets(st.integers(0, 10), max_size=8)))
    kinds = st.sampled_from(["", "PER", "my-type"])
    pairs = [(start, end) for start, end in itertools.pairwise(cuts) if draw(st.booleans())]
    return [Span(draw(kinds), start, end) for start, end in pairs], 10


@given(spans_and_length(), st.sampled_from(SCHEMES), st.sampled_from(SCHEMES))
def test_spans_come_back_in_any_scheme(case, source, target):
    spans, length = case
    tags = tags_from_spans(reversed(spans), length, source)
    assert len(tags) == length
    assert spans_from_tags(tags, source) == spans
    assert spans_from_tags(tags, "conlleval") == spans
    assert convert(tags, source, target) == tags_from_spans(spans, length, target)


def test_one_sentence_in_all_schemes():
    spans = [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4), ("PER", 5, 6)]
    assert tags_from_spans(spans, 6, "iob1") == ["I-PER", "I-PER", "B-PER", "I-LOC", "O", "I-PER"]
    assert tags_from_spans(spans, 6, "iob2") == ["B-PER", "I-PER", "B-PER", "B-LOC", "O", "B-PER"]
    assert tags_from_spans(spans, 6, "iobes") == ["B-PER", "E-PER", "S-PER", "S-LOC", "O", "S-PER"]


def test_the_middle_of_a_span_may_be_m():
    tags = ["B-LOC", "M-LOC", "E-LOC", "S-PER"]
    assert convert(tags, "iobes", "iob2") == ["B-LOC", "I-LOC", "I-LOC", "B-PER"]
    assert spans_from_tags(tags, "conlleval") == spans_from_tags(tags, "iobes")


@pytest.mark.parametrize(
    "tags, scheme, place, repaired",
    [
        (["O", "I-PER"], "iob2", "tag 1 is I-PER after O", [("PER", 1, 2)]),
        (["I-PER"], "iob2", "tag 0 is I-PER at the beginning", [("PER", 0, 1)]),
        (["B-PER", "I-LOC"], "iob2", "tag 1 is I-LOC after B-PER", [("PER", 0, 1), ("LOC", 1, 2)]),
        (["O", "B-PER"], "iob1", "tag 1 is B-PER after O", [("PER", 1, 2)]),
        (["B-PER", "O"], "iobes", "tag 1 is O after B-PER", [("PER", 0, 1)]),
        (["B-PER", "I-PER"], "iobes", "the 2 tags end after I-PER", [("PER", 0, 2)]),
        (["B-PER", "S-PER"], "iobes", "tag 1 is S-PER after B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        (["S-PER", "E-PER"], "iobes", "tag 1 is E-PER after S-PER", [("PER", 0, 1), ("PER", 1, 2)]),
    ],
)
def test_tags_out_of_place_are_named_or_repaired(tags, scheme, place, repaired):
    with pytest.raises(DataError, match=f"{place}, but in {scheme}"):
        spans_from_tags(tags, scheme)
    assert spans_from_tags(tags, "conlleval") == repaired


@pytest.mark.parametrize("tag", ["", "PER", "X-PER", "O-PER", "b-PER", "E-PER"])
def test_unknown_tags_are_refused(tag):
    with pytest.raises(DataError, match=f"tag 1 is {tag!r}, but iob2 has O, I-TYPE, B-TYPE"):
        spans_from_tags(["O", tag], "iob2")


@pytest.mark.parametrize(
    "spans, sentence",
    [
        ([("A", 0, 2), ("B", 1, 3)], "overlap"),
        ([("A", 0, 4)], "of the 3 words"),
        ([("A", 1, 1)], "at least one of the 3 words"),
        ([("A", -1, 1)], "of the 3 words"),
    ],
)
def test_spans_that_no_tags_spell_are_refused(spans, sentence):
    with pytest.raises(DataError, match=sentence):
        tags_from_spans(spans, 3, "iob2")
