"""Equal to what the official programs of SQuAD 1.1, SQuAD 2.0 and CMRC 2018 said of the same answers."""

import sys

import pytest

from eval.scores import cmrc_exact_match, cmrc_f1, score, squad_exact_match, squad_f1
from train.config import UserError

pytestmark = pytest.mark.filterwarnings("error")

# prediction, references; exact match and F1 of version 1.1, exact match and F1 of version 2.0
SQUAD = [
    ("Denver Broncos", ["Denver Broncos", "the Broncos"], 1, 1, 1, 1),
    ("The Denver Broncos!", ["Denver Broncos"], 1, 1, 1, 1),
    ("a cat sat on the mat", ["the cat sat", "sat on mat"], 0, 0.857143, 0, 0.857143),
    ("1,000", ["1000"], 1, 1, 1, 1),
    ("in 1066 , at Hastings", ["Hastings", "1066"], 0, 0.4, 0, 0.4),
    ("", ["Normandy"], 0, 0, 0, 0),
    ("the", ["the"], 1, 0, 1, 1),
    ("   ", ["..."], 1, 0, 1, 1),
    ("U.S. Army", ["us army"], 1, 1, 1, 1),
    ("naïve café", ["naive cafe", "naïve"], 0, 0.666667, 0, 0.666667),
    ("Beyoncé’s", ["Beyoncé's"], 0, 0, 0, 0),
    ("the the dog dog", ["dog dog dog"], 0, 0.8, 0, 0.8),
    ("An apple", ["an", "apple"], 1, 1, 1, 1),
]
# prediction, references; exact match and F1
CMRC = [
    ("北京大学", ["北京大学"], 1, 1),
    ("在北京大学，", ["北京大学", "大学"], 0, 0.888889),
    ("《红楼梦》", ["红楼梦"], 1, 1),
    ("2008年8月8日", ["2008年"], 0, 0.5),
    ("iPhone 6 Plus手机", ["iphone 6 plus", "手机"], 0, 0.75),
    ("", ["空"], 0, 0),
    ("。", ["，"], 1, 0),
    ("3.5英里", ["3.5 英里"], 0, 1),
    ("don't stop", ["Don't Stop Believin'"], 0, 0.75),
    ("A……B", ["A…B"], 0, 0),
    ("大学北京", ["北京大学"], 0, 0.5),
    ("wi-fi", ["wifi"], 1, 1),
]


def check(metric, table, column, **options):
    predictions, references = [row[0] for row in table], [row[1] for row in table]
    measure = metric(predictions, references, **options)
    expected = [row[2 + column] for row in table]
    assert (measure.statistics[:, 0] / 100).tolist() == pytest.approx(expected, abs=1e-6)
    assert measure.value == pytest.approx(100 * sum(expected) / len(expected), abs=1e-4)
    assert score(measure).low < measure.value < score(measure).high


@pytest.mark.parametrize("version, first", [("1.1", 0), ("2.0", 2)])
def test_squad(version, first):
    check(squad_exact_match, SQUAD, first, version=version)
    check(squad_f1, SQUAD, first + 1, version=version)


def test_questions_without_an_answer():
    predictions, references = ["", "Paris", "the", ""], [[], [], [], ["Paris"]]
    for metric in (squad_exact_match, squad_f1):
        assert metric(predictions, references, version="2.0").value == 50
        with pytest.raises(UserError, match="example 0 has no reference"):
            metric(predictions, references)


def test_cmrc():
    pytest.importorskip("nltk", reason="needs the eval extra")
    check(cmrc_exact_match, CMRC, 0)
    check(cmrc_f1, CMRC, 1)


def test_one_reference_may_stand_without_a_list():
    assert squad_f1(["a b"], ["b"]).value == squad_f1(["a b"], [["b"]]).value == 100


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(UserError, match=r"needs the package nltk: pip install 'quire\[eval\]'"):
        cmrc_f1(["北"], ["北"])


@pytest.mark.parametrize(
    "predictions, references, sentence",
    [
        (["a"], [], "squad_f1: 1 predictions do not go with 0 references"),
        ([None], ["a"], "squad_f1: prediction 0 must be text, not NoneType"),
        (["a"], [[1]], "squad_f1: the references of example 0 must be a text or a list of texts"),
    ],
)
def test_mistakes_are_one_sentence(predictions, references, sentence):
    with pytest.raises(UserError, match=sentence):
        squad_f1(predictions, references)
