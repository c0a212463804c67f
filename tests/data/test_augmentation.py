"""Edits of words are as many as asked for; tokens that are dropped are never special ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.augmentation import Augmenter, check_augmentation, edit_words, read_synonyms
from data.config import Cleaning, DataConfig
from data.document import DataError
from data.examples import make_examples
from data.records import Record
from data.task_config import Augmentation, Classification, Dialogue, SpanAnswering, Tagging
from data.tasks import checked
from data.tokenizer import ByteTokenizer

TEXT = "one two three four five six seven eight nine ten"
SYNONYMS = {"three": ["3"], "nine": ["9", "IX"]}


def edits(text=TEXT, synonyms=SYNONYMS, count=400, **shares):
    config = Augmentation.model_construct(**{**Augmentation().model_dump(), **shares})
    return [edit_words(text, config, synonyms, np.random.default_rng(i)).split() for i in range(count)]


def test_no_share_is_no_change():
    text = "  a\n\tb   北 京 "
    assert edit_words(text, Augmentation(token_dropout=0.5), {}, np.random.default_rng(0)) == text


def test_deletions_are_as_many_as_asked_for():
    words = TEXT.split()
    found = edits(delete=0.25)
    assert {len(each) for each in found} == {7, 8}
    assert np.mean([len(each) for each in found]) == pytest.approx(7.5, abs=0.1)
    assert all(each == [word for word in words if word in each] for each in found)
    assert edits("word", delete=0.9, count=5) == [["word"]] * 5


def test_swaps_keep_the_words():
    found = edits(swap=0.2)
    assert all(sorted(each) == sorted(TEXT.split()) for each in found)
    assert len(set(map(tuple, found))) > 50


def test_synonyms_replace_their_words_alone():
    for each in edits(replace=0.5):
        assert len(each) == 10 and each[2] == "3" and each[8] in ("9", "IX")
        assert [each[i] for i in (0, 1, 3, 4, 5, 6, 7, 9)] == "one two four five six seven eight ten".split()
    assert {each[8] for each in edits(replace=0.5)} == {"9", "IX"}
    assert all(len(each) == 12 and {"3", "9", "IX"} & set(each) for each in edits(insert=0.3))
    assert all(len(each) == 13 for each in edits(insert=0.3, synonyms={}))


def test_chinese_characters_are_words():
    found = {"".join(each) for each in edits("我爱 北京very much。", swap=0.3)}
    assert all(sorted(each) == sorted("我爱北京verymuch。") for each in found) and len(found) > 5
    kept = [edit_words("北京大学", Augmentation(delete=0.5), {}, np.random.default_rng(i)) for i in range(20)]
    assert {len(each) for each in kept} == {2}


@given(text=st.text(max_size=40), seed=st.integers(0, 99))
def test_any_text_can_be_edited(text, seed):
    config = Augmentation(insert=0.4, swap=0.4, delete=0.9)
    edited = edit_words(text, config, {}, np.random.default_rng(seed))
    assert bool(edited.strip()) == bool(text.strip())
    edited.encode("utf-8", "surrogatepass")


def test_dropped_tokens_are_never_special():
    task, tokenizer = Classification(labels=("a", "b")), ByteTokenizer()
    records = [Record({"text": "x" * 50, "label": "a"}, "file:1")]
    config = DataConfig(length=64, augmentation=Augmentation(token_dropout=0.3))
    made = make_examples(config, "train", records, task, tokenizer, stack="encoder")
    rows = [Augmenter(made, 0).row(0, epoch)["inputs"] for epoch in range(200)]
    assert all((row[0], row[-1], len(row)) == (tokenizer.bos_id, tokenizer.eos_id, 52) for row in rows)
    dropped = np.mean([(row[1:-1] == tokenizer.unk_id).mean() for row in rows])
    assert dropped == pytest.approx(0.3, abs=0.02)
    validation = make_examples(config, "validation", records, task, tokenizer, stack="encoder")
    assert validation.augmentation == Augmentation()


def test_an_edited_text_is_cut_to_the_length():
    task = Classification(labels=("a", "b"))
    config = DataConfig(length=16, augmentation=Augmentation(insert=0.9))
    record = checked(Record({"text": "aa bb cc dd ee", "label": "a"}, "file:1"), task, Cleaning())
    made = make_examples(config, "train", [record], task, ByteTokenizer(), stack="encoder")
    assert {len(Augmenter(made, 0).row(0, epoch)["inputs"]) for epoch in range(9)} == {16}
    assert replace(made, records=()).lengths.tolist() == made.lengths.tolist()


def test_synonyms_are_read_from_a_file(tmp_path):
    path = tmp_path / "synonyms.txt"
    path.write_text("Big\tlarge\tvery big\n\nsmall little tiny\nalone\nbig great\n")
    assert read_synonyms(path) == {"big": ["large", "very big", "great"], "small": ["little", "tiny"]}
    with pytest.raises(DataError, match="the synonyms cannot be read"):
        read_synonyms(tmp_path / "missing")
    with pytest.raises(ValidationError, match="replace needs synonyms"):
        Augmentation(replace=0.1)


def test_words_under_labels_are_not_edited():
    for task in (Tagging(types=("A",)), SpanAnswering(), Dialogue()):
        with pytest.raises(DataError, match=f"words of {task.kind} cannot be edited under their labels"):
            check_augmentation(Augmentation(delete=0.1), task)
    check_augmentation(Augmentation(token_dropout=0.1), Tagging(types=("A",)))
    with pytest.raises(DataError, match="token_dropout is not for dialogue"):
        check_augmentation(Augmentation(token_dropout=0.1), Dialogue())
