"""Each step does its one thing, nothing is done unless asked for, and no text makes a step fail."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning import clean
from data.config import Cleaning


@settings(deadline=None)
@given(st.text())
def test_nothing_is_done_by_default(text):
    assert clean(text, Cleaning()) == text


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ({"html": True}, "<p>Tom &amp; <b>Jer</b>ry</p><p>1 &lt; 2</p>", "Tom & Jerry\n1 < 2\n"),
        ({"html": True}, "a<script>x < 1 && '<b>'</script>b<style>p{}</style>c<!-- d -->", "abc"),
        ({"html": True}, "one<br/>two<br>three", "one\ntwo\nthree"),
        ({"html": True}, "a < b and c > d", "a < b and c > d"),
        ({"repair_unicode": True}, "cafÃ© âœ” ﬁ", "café ✔ fi"),
        ({"normalize": "NFC"}, "e\u0301 ﬁ", "é ﬁ"),
        ({"normalize": "NFKC"}, "ﬁ ２", "fi 2"),
        ({"control_characters": True}, "a\x00b\x1b\u200bc\ufeff\td\r\n", "abc\td\n"),
        ({"white_space": True}, "  a \t b  \r\n\n \n\n  c\u00a0\u3000d ", "a b\n\nc d"),
        (
            {"stop_words": "english"},
            "The cat is on the mat, isn't it? Built-in theory.",
            "cat mat, isn't ? Built-in theory.",
        ),
        ({"stop_words": "chinese"}, "我们的猫在垫子上", "猫垫子上"),
    ],
)
def test_each_step(step, text, expected):
    assert clean(text, Cleaning(**step)) == expected


def test_the_order_is_fixed():
    """Entities resolve before normalization, and white space is collapsed last."""
    cleaning = Cleaning(html=True, normalize="NFKC", white_space=True, stop_words="english")
    assert clean("<i>&#xFB01;sh</i>&nbsp;&nbsp;and   chips", cleaning) == "fish chips"


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@settings(deadline=None)
@given(text=st.text())
def test_normal_forms(form, text):
    assert unicodedata.is_normalized(form, clean(text, Cleaning(normalize=form)))


@settings(deadline=None)
@given(st.text(alphabet=" \t\n\r\u00a0ab", max_size=60))
def test_white_space_is_idempotent_and_keeps_all_else(text):
    cleaned = clean(text, Cleaning(white_space=True))
    assert clean(cleaned, Cleaning(white_space=True)) == cleaned
    assert "".join(cleaned.split()) == "".join(text.split())
    assert "\n\n\n" not in cleaned
    assert "  " not in cleaned


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="<>!-&#/[]?ax;=\"' \n"), st.from_regex(r"(<!?[\[a-z/?-]*[&#x0-9;]*>?)+")))
def test_no_text_makes_any_step_fail(text):
    everything = Cleaning(
        html=True,
        repair_unicode=True,
        normalize="NFKC",
        control_characters=True,
        white_space=True,
        stop_words="english",
    )
    clean(text, everything).encode("utf-8")
