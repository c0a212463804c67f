"""What is encoded is decoded to the very same text, no text spells a special id, training is repeatable."""

import json
import pickle
import shutil
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import cache, subwords
from data import tokenizer as tokenizers
from data.characters import CharacterTokenizer
from data.config import Bytes, Characters, Cleaning, Files, SentencePiece
from data.document import DataError

TEXT = (
    "In the beginning was the word, and the word was 1234.\n\n"
    "    def indented(code):\n        return '早上好' + code  # two  spaces\n"
    "She sells sea shells by the sea shore; the shells she sells are sea shells for sure.\n"
) * 20
CONFIGS = {
    "unigram": SentencePiece(algorithm="unigram", vocab_size=360),
    "bpe": SentencePiece(algorithm="bpe", vocab_size=360),
    "characters": Characters(),
    "bytes": Bytes(),
}
EXACT = ("unigram", "bpe", "bytes")


@pytest.fixture(scope="module")
def trained():
    return {name: tokenizers.train(config, iter([TEXT])) for name, config in CONFIGS.items()}


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="\u2581 \n\r\t\x00a1早😀<s>/unkpad0xA_\ufeff\u2047\ufffd"),
        st.sampled_from([TEXT]),
    )
)
@example("\u2581 \u2581\u2581\n\u2581")
@example(" ⁇ \u2585 \ufffd\ufeff\x00\r\n\r\t    \t")
@example("<s></s><pad><unk><0x0A><0xE2>\n▁the")
@example("汉字😀👩‍👩‍👧 e\u0301")
def test_every_text_comes_back_exactly(trained, text):
    for name in EXACT:
        tokenizer = trained[name]
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, name
        assert ids.dtype == np.int32
        assert ((ids >= 4) & (ids < tokenizer.vocab_size)).all(), name
        assert len(tokenizer.pieces(ids)) == len(ids)


@settings(deadline=None)
@given(st.text())
def test_characters_come_back_if_they_are_in_the_alphabet(trained, text):
    tokenizer = trained["characters"]
    expected = "".join(character if character in TEXT else "\ufffd" for character in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert (tokenizer.encode(text) == tokenizer.unk_id).sum() == expected.count("\ufffd")


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab \n\u2581早"), max_size=6))
def test_a_batch_is_its_texts(trained, texts):
    for tokenizer in trained.values():
        batch = tokenizer.encode_batch(texts)
        assert [ids.tolist() for ids in batch] == [tokenizer.encode(text).tolist() for text in texts]


@pytest.mark.parametrize("name", CONFIGS)
def test_special_ids(trained, name):
    tokenizer = trained[name]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    ids = [0, 2, *tokenizer.encode("word"), 3, 0]
    assert tokenizer.decode(ids) == "word"
    assert tokenizer.pieces([0, 1, 2, 3]) == ["<pad>", "<unk>", "<s>", "</s>"]
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match="is outside the vocabulary"):
            tokenizer.decode([outside])


@pytest.mark.parametrize("name", CONFIGS)
def test_saving_pickling_and_fingerprints(trained, name, tmp_path):
    tokenizer = trained[name]
    tokenizer.save(tmp_path)
    for copy in (tokenizers.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy == tokenizer
        assert copy.vocab_size == tokenizer.vocab_size
        assert copy.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    prints = {tokenizers.fingerprint(other) for other in trained.values()}
    assert len(prints) == len(trained)
    assert tokenizers.fingerprint(tokenizers.load(tmp_path)) == tokenizers.fingerprint(tokenizer)


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_training_is_deterministic_and_silent(trained, name, capfd):
    again = tokenizers.train(CONFIGS[name], iter([TEXT]))
    assert again.model == trained[name].model
    assert capfd.readouterr() == ("", "")


def test_the_sample_has_its_size_its_order_and_any_part_of_the_text():
    sentences = [f"{i:04d}" for i in range(1000)]
    sample = subwords.sample(sentences, max_characters=400)
    assert len(sample) == 100
    assert sample == sorted(sample)
    assert int(sample[0]) < 100 < 900 < int(sample[-1])
    assert subwords.sample(sentences, max_characters=4000) == sentences


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_subwords_are_words_and_indentation_is_cheap(algorithm):
    config = SentencePiece(algorithm=algorithm, vocab_size=1500)
    tokenizer = tokenizers.train(config, iter(topics[name] for name in sorted(topics)))
    assert len(tokenizer.encode(" the function is called with the value of the object")) <= 14
    assert len(tokenizer.encode("        return")) <= 4


def test_too_little_text_for_the_vocabulary():
    assert tokenizers.train(SentencePiece(vocab_size=8000), iter(["hello world"])).vocab_size < 300
    with pytest.raises(DataError, match=r"too small for vocab_size 8000: the largest possible with bpe is \d+"):
        tokenizers.train(SentencePiece(algorithm="bpe", vocab_size=8000), iter(["hello world"]))


def test_too_many_characters_for_the_vocabulary():
    chinese = "".join(map(chr, range(0x4E00, 0x5000)))
    for algorithm in ("unigram", "bpe"):
        with pytest.raises(DataError, match=r"vocab_size 400 is too small: this text needs more than \d+; raise"):
            config = SentencePiece(algorithm=algorithm, vocab_size=400, character_coverage=1)
            tokenizers.train(config, iter([chinese]))


@pytest.mark.parametrize("config", [SentencePiece(), SentencePiece(algorithm="bpe"), Characters()])
@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_to_train_on(config, texts):
    with pytest.raises(DataError, match="there is no text"):
        tokenizers.train(config, iter(texts))


def test_half_a_character_is_not_text(trained):
    for tokenizer in trained.values():
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode("a\ud800")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no tokenizer can be read here"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer can be read here"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"kind"'), "tokenizer.json is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "is not of version 1"),
        (lambda folder: edit(folder, version=99), "is not of version 1"),
        (lambda folder: edit(folder, kind="morse"), "unknown kind 'morse'"),
        (lambda folder: edit(folder, kind="characters"), "tokenizer.json is damaged: KeyError"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer can be read here"),
        (lambda folder: flip(folder / "tokenizer.model"), "tokenizer.model is damaged: its checksum"),
    ],
)
def test_a_damaged_folder_is_refused(trained, tmp_path, damage, message):
    folder = tmp_path / "tokenizer"
    trained["bpe"].save(folder)
    damage(folder)
    with pytest.raises(DataError) as caught:
        tokenizers.load(folder)
    assert str(caught.value).startswith(str(folder))
    assert message in str(caught.value)


def edit(folder, **changes):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "a.model"
    path.write_text("not a model")
    with pytest.raises(DataError, match=r"a\.model: not a SentencePiece model"):
        tokenizers.load(path)


def test_another_model_gets_the_special_ids_that_it_lacks(shared_dataset):
    path = shared_dataset("tokenizers/t5_sentencepiece") / "t5-base.spiece.model"
    tokenizer = tokenizers.train(SentencePiece(path=str(path)), iter(()))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 32000, 1)
    assert tokenizer.vocab_size == 32001
    ids = tokenizer.encode("Studies have shown that owning a dog is good for you")
    assert ids.tolist() == [6536, 43, 2008, 24, 293, 53, 3, 9, 1782, 19, 207, 21, 25]
    assert tokenizer.decode([32000, *ids, 1]) == "Studies have shown that owning a dog is good for you"


@pytest.mark.parametrize("name", CONFIGS)
def test_special_tokens_that_are_added(trained, name, tmp_path):
    base = trained[name]
    assert (base.mask_id, base.sentinel_ids, dict(base.named), base.special_ids) == (None, (), {}, {0, 1, 2, 3})
    assert tokenizers.with_specials(base) is base
    extended = tokenizers.with_specials(base, mask=True, num_sentinels=2, names=["[R]", "[S]"])
    size = base.vocab_size
    assert (extended.mask_id, extended.sentinel_ids) == (size, (size + 1, size + 2))
    assert extended.named == {"[R]": size + 3, "[S]": size + 4}
    assert extended.vocab_size == size + 5
    assert extended.special_ids == {0, 1, 2, 3, *range(size, size + 5)}
    assert extended.pieces([size, size + 1, size + 4, 3]) == ["<mask>", "<extra_id_0>", "[S]", "</s>"]
    text = "the <mask> word <extra_id_0>[R]"
    ids = extended.encode(text)
    assert ids.tolist() == base.encode(text).tolist()
    assert extended.decode([2, size, *ids, size + 4]) == base.decode(ids)
    with pytest.raises(DataError, match="outside the vocabulary"):
        extended.decode([size + 5])
    extended.save(tmp_path)
    for copy in (tokenizers.load(tmp_path), pickle.loads(pickle.dumps(extended))):
        assert copy == extended and copy.vocab_size == extended.vocab_size
    assert tokenizers.fingerprint(extended) == tokenizers.fingerprint(base)
    assert tokenizers.with_specials(extended, mask=True, num_sentinels=2, names=["[S]"]) is extended
    more = tokenizers.with_specials(extended, num_sentinels=3)
    assert more.base is base and more.sentinel_ids == (size + 1, size + 2, size + 5)


def test_a_cache_is_the_same_with_and_without_added_tokens(tmp_path):
    """Also where the added ids no longer fit the type of the tokens, and the build with them came second."""
    alphabet = "".join(map(chr, [*range(0x20, 0xD7FF), *range(0xE000, 0xFFFF), *range(0x10000, 0x10820)]))[: 2**16 - 4]
    base = CharacterTokenizer(alphabet)
    extended = tokenizers.with_specials(base, mask=True)
    assert (base.vocab_size, extended.vocab_size) == (2**16, 2**16 + 1)
    (tmp_path / "text.txt").write_text("some text\n\nmore text")
    source = Files(path=str(tmp_path / "text.txt"), document="paragraph")
    without = cache.build((source,), Cleaning(), base, tmp_path / "cache")
    (without.folder / "manifest.json").unlink()
    again = cache.build((source,), Cleaning(), extended, tmp_path / "cache")
    assert again.key == without.key
    assert extended.decode(again.document(1)) == "more text"


@pytest.mark.parametrize("name", CONFIGS)
def test_words_begin_after_white_space(trained, name):
    tokenizer = trained[name]
    text = "the word  was\n\n    the   sea\tshells\nfor"
    if name == "characters":
        text = text.replace("\t", "\n")  # a tab is not in its alphabet
    ids = tokenizer.encode(text)
    starts = tokenizer.word_starts(ids)
    assert starts.dtype == bool and starts[0]
    words = [tokenizer.decode(word) for word in np.split(ids, np.flatnonzero(starts)[1:])]
    assert [word.strip() for word in words if word.strip()] == text.split()
    two = np.concatenate([ids, [tokenizer.eos_id], ids])
    assert tokenizer.word_starts(two)[len(ids) :].tolist() == [True, *starts]
    assert tokenizer.word_starts(np.stack([ids, ids])).tolist() == [starts.tolist()] * 2
    assert tokenizer.word_starts(ids[:0]).tolist() == []
    extended = tokenizers.with_specials(tokenizer, mask=True)
    marked = np.insert(ids, 3, extended.mask_id)
    assert extended.word_starts(marked)[3]
    assert np.delete(extended.word_starts(marked), [3, 4]).tolist() == np.delete(starts, 3).tolist()
