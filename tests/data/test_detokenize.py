"""Spacing is put right, and nothing else: no two texts become one, and no sign is lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.detokenize import detokenize


@pytest.mark.parametrize(
    "tokenized, written",
    [
        (" = Robert Boulter = \n", "= Robert Boulter =\n"),
        (" = = = 2000 – 2005 = = = \n", "=== 2000 – 2005 ===\n"),
        (" x = = y = \n", "x = = y =\n"),
        (" a guest @-@ starring role @-@ like \n", "a guest-starring role-like\n"),
        (" 12 @,@ 345 @.@ 6 % of $ 5 \n", "12,345.6% of $5\n"),
        (
            " Teddy 's dogs ' tails didn 't wag ; they 're in Chang 'an . \n",
            "Teddy's dogs' tails didn't wag; they're in Chang'an.\n",
        ),  # fmt: skip  # noqa: E501
        (' the episode , " In Safe Hands " . " So ! " \n', 'the episode, "In Safe Hands". "So!"\n'),
        (" he ( a [ b ] ) , ' so ' and 20 ° C / 68 ° F : \n", "he (a [b]), 'so' and 20°C/68°F:\n"),
        (" \n one \n \n", "\none\n\n"),
    ],
)
def test_wikitext(tokenized, written):
    assert detokenize(tokenized, "wikitext") == written


def test_the_other_corpora():
    ptb = " the company 's profit of $ N was n't N % of <unk>\\/co. \n"
    assert detokenize(ptb, "ptb") == "the company's profit of $N wasn't N% of <unk>/co.\n"
    lambada = "`` i do n't know , '' she said . `` is it ` right ' ? ''"
    assert detokenize(lambada, "lambada") == '"i don\'t know," she said. "is it \'right\'?"'
    billion = '" We don \'t know , " he said ( in 2009 ) and / or paid $ 5 .'
    assert detokenize(billion, "one_billion_words") == '"We don\'t know," he said (in 2009) and/or paid $5.'


TOKENS = st.sampled_from(
    [*".,;:!?'\"()[]{}$%=/", "...", "'s", "n't", "word", "5", "90s", "x's", "<unk>", "\n", "é", "好"]
)


@given(st.lists(TOKENS, max_size=20).map(lambda tokens: " " + " ".join(tokens) + " "))
def test_only_spaces_change(text):
    for corpus in ("wikitext", "ptb", "lambada", "one_billion_words"):
        result = detokenize(text, corpus)
        assert result.replace(" ", "") == text.replace(" ", "")
        assert len(result) <= len(text)


def test_no_two_lines_of_wikitext_become_one(wikitext2):
    lines = {line.strip() for line in (wikitext2 / "test.txt").read_text("utf-8").split("\n")}
    assert len({detokenize(f" {line} ", "wikitext") for line in lines}) == len(lines) > 2600


def test_a_whole_text_is_the_lines_and_only_spaces_and_marks_are_lost(wikitext2):
    text = (wikitext2 / "test.txt").read_text("utf-8")
    result = detokenize(text, "wikitext")
    assert result.split("\n") == [detokenize(line, "wikitext") for line in text.split("\n")]
    assert re.sub(r"\s", "", result) == re.sub(r"\s", "", re.sub(r" @([-,.])@ ", r"\1", text))
    assert not re.search(r"@[-,.]@| [.,;!?)]|\( ", result.replace(" . . .", "").replace(" ..", "").replace(" ...", ""))
