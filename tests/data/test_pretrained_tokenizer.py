"""Folders of pretrained models give the ids of their official loaders, and no text spells a special token."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import tokenizer as tokenizers
from data.config import ByteBPE, Bytes, Characters, Pretrained, SentencePiece, WordPiece
from data.document import DataError
from data.task_encoding import Template

pytest.importorskip("tokenizers", reason="needs the hf extra")

SHARED = Path(os.environ.get("QUIRE_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "tokenizers"
HARD = (
    "Hello,  wörld! It's 12345 x²\n \n new   line\ttab <b>ok</b> naïve ﬁ ½ \u00a0x 😀 don't e\u0301 ``quoted'' İ",
    " leading and trailing  ",
    "早上好，我们去北京大学。 今日は 안녕하세요 ｆｕｌｌ",
    "",
    "\n",
    "a\u200bb \ufeffc \u2581d \x00e \u3000f",
    "def f(x):\n    return  x  # two",
)
SPELLED = (
    "[MASK]",
    "[CLS] [SEP]",
    "</s>",
    "a</s>b <s>",
    "<|endoftext|>",
    "<extra_id_0>",
    "<mask>",
    "<pad>",
    "<mask_1>",
)


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs a vocabulary at {path}; set QUIRE_DATA to a folder of datasets")
    return path


def write(folder: Path, config: dict | None = None, **files: Path | bytes) -> Path:
    """Writes a Hugging Face folder; in the names of `files`, two underscores stand for a full stop."""
    folder.mkdir()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        (folder / name.replace("__", ".")).write_bytes(data)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def model(**options) -> bytes:
    """A small SentencePiece model with the normalization that T5 and its relatives use."""
    out = io.BytesIO()
    text = shared("sentencepiece_testdata/botchan.txt").read_text().split("\n")[:1200]
    options = {"vocab_size": 700, "hard_vocab_limit": False, "minloglevel": 4, "num_threads": 1} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=out, **options)
    return out.getvalue()


def wordpiece(folder: Path, **config) -> Path:
    vocab = shared("bert_wordpiece/bert-base-uncased-vocab.txt")
    return write(folder, {"tokenizer_class": "BertTokenizer", **config}, vocab__txt=vocab)


def chinese(folder: Path) -> Path:
    return write(folder, {"model_type": "bert"}, vocab__txt=shared("bert_wordpiece/bert-base-chinese-vocab.txt"))


def gpt2_start() -> tuple[list[str], bytes]:
    """GPT-2's first pieces and merges, which load quicker than all."""
    pieces = list(json.loads(shared("gpt2_bpe/encoder.json").read_bytes()))[:3256]
    return pieces, b"\n".join(shared("gpt2_bpe/vocab.bpe").read_bytes().split(b"\n")[:3001])


def gpt2(folder: Path, config: dict | None = None) -> Path:
    pieces, merges = gpt2_start()
    vocab = json.dumps({piece: i for i, piece in enumerate([*pieces, "<|endoftext|>"])}).encode()
    return write(folder, config, vocab__json=vocab, merges__txt=merges)


def roberta(folder: Path) -> Path:
    """GPT-2's merges with RoBERTa's special tokens around its vocabulary."""
    pieces, merges = gpt2_start()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"]
    vocab = json.dumps({piece: i for i, piece in enumerate(pieces)}).encode()
    return write(folder, None, vocab__json=vocab, merges__txt=merges)


def t5(folder: Path) -> Path:
    folder = write(folder, None, spiece__model=shared("t5_sentencepiece/t5-base.spiece.model"))
    (folder / "config.json").write_text('{"model_type": "t5"}')
    return folder


def albert(folder: Path) -> Path:
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    return write(folder, {"tokenizer_class": "AlbertTokenizer"}, spiece__model=model(**ids))


def pegasus(folder: Path) -> Path:
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    return write(folder, {"tokenizer_class": "PegasusTokenizer"}, spiece__model=model(**ids))


def xlm_roberta(folder: Path) -> Path:
    trained = shared("sentencepiece_testdata/test_model.model")
    return write(folder, {"tokenizer_class": "XLMRobertaTokenizer"}, sentencepiece__bpe__model=trained)


def llama(folder: Path, **config) -> Path:
    trained = model(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", split_digits=True)
    return write(folder, {"tokenizer_class": "LlamaTokenizer", **config}, tokenizer__model=trained)


def marian(folder: Path) -> Path:
    source = shared("t5_sentencepiece/t5-base.spiece.model").read_bytes()
    target = shared("sentencepiece_testdata/test_model.model").read_bytes()
    names = {}
    for proto in (source, target):
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        names |= dict.fromkeys(processor.id_to_piece(i) for i in range(processor.vocab_size()))
    pieces = ["</s>", "<unk>", *sorted(names.keys() - {"</s>", "<unk>", "<pad>", "▁the"}), ">>fra<<", "<pad>"]
    vocab = json.dumps({piece: i for i, piece in enumerate(pieces)}).encode()
    config = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "fr"}
    return write(folder, config, source__spm=source, target__spm=target, vocab__json=vocab)


FAMILIES = {
    "BertTokenizer": wordpiece,
    "BertTokenizer-cased": lambda folder: wordpiece(folder, do_lower_case=False, tokenize_chinese_chars=False),
    "BertTokenizer-accents": lambda folder: wordpiece(folder, strip_accents=False),
    "BertTokenizer-chinese": chinese,
    "GPT2Tokenizer": gpt2,
    "GPT2Tokenizer-padded": lambda folder: gpt2(folder, {"pad_token": "[PAD]", "add_prefix_space": True}),
    "RobertaTokenizer": roberta,
    "T5Tokenizer": t5,
    "AlbertTokenizer": albert,
    "PegasusTokenizer": pegasus,
    "XLMRobertaTokenizer": xlm_roberta,
    "LlamaTokenizer": lambda folder: llama(folder, add_bos_token=True),
    "LlamaTokenizer-legacy": lambda folder: llama(folder, legacy=True),
    "MarianTokenizer": marian,
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return FAMILIES[request.param](tmp_path_factory.mktemp("folder") / request.param)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load(folder)


@pytest.fixture(scope="module")
def official(folder):
    """What the official loader makes of the folder."""
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    return getattr(transformers, folder.name.partition("-")[0]).from_pretrained(folder)


def official_roles(official) -> dict[str, int]:
    """The special ids that it has, with [CLS] and [SEP] where a text has no other begin and end."""
    ids = {role: getattr(official, f"{role}_token_id") for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask")}
    ids["bos"], ids["eos"] = (ids[a] if ids[a] is not None else ids.pop(b) for a, b in (("bos", "cls"), ("eos", "sep")))
    return {role: i for role, i in ids.items() if i is not None and role not in ("cls", "sep")}


@pytest.mark.parity
def test_every_text_has_the_official_ids(tokenizer, official):
    texts = [*HARD, *shared("sentencepiece_testdata/botchan.txt").read_text().split("\n")[:200]]
    theirs = [official(text, add_special_tokens=False)["input_ids"] for text in texts]
    ours = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    assert ours == theirs
    decoded = [official.decode(ids, skip_special_tokens=True) for ids in theirs]
    assert [tokenizer.decode(ids) for ids in ours] == decoded
    for role, i in official_roles(official).items():
        assert getattr(tokenizer, f"{role}_id") == i, role
    assert tokenizer.vocab_size == len(official) + (tokenizer.bos_id == len(official))


@pytest.mark.parity
def test_the_template_is_the_official_one(tokenizer, official):
    for texts in (("A dog.",), ("A dog.", "Two cats?")):
        ids, type_ids = tokenizer.with_template(*texts)
        expected = official(*texts, return_token_type_ids=True)
        assert ids.tolist() == expected["input_ids"]
        if tokenizer.family != "marian":  # whose type ids nothing reads
            assert type_ids.tolist() == expected["token_type_ids"]


@pytest.mark.parity
def test_rows_of_a_task_have_the_official_template(tokenizer):
    template = Template.official(tokenizer)
    if template is None:
        pytest.skip("a template without marks")
    a, b = tokenizer.encode_batch(["A dog.", "Two cats?"])
    assert template.around(a).tolist() == tokenizer.with_template("A dog.")[0].tolist()
    inputs, type_ids = tokenizer.with_template("A dog.", "Two cats?")
    row = template.pair(a, b)
    assert row["inputs"].tolist() == inputs.tolist()
    if type_ids.any() and tokenizer.eos_id in template.between:  # Llama counts from the begin of the second text
        assert row["sentence_ids"].tolist() == type_ids.tolist()


def test_offsets_are_those_of_the_tokens(tokenizer):
    for text in HARD:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids.tolist() == tokenizer.encode(text).tolist()
        assert offsets.shape == (len(ids), 2) and (offsets >= 0).all() and (offsets <= len(text)).all()
        assert (offsets[:, 0] <= offsets[:, 1]).all() and (np.diff(offsets[:, 0]) >= 0).all()


@pytest.mark.parity
def test_a_folder_that_the_official_library_saved_reads_alike(tokenizer, official, tmp_path):
    if tokenizer.family == "marian":
        pytest.skip("Marian has no tokenizer.json")
    official.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    saved = tokenizers.load(tmp_path)
    for text in HARD:
        assert saved.encode(text).tolist() == official(text, add_special_tokens=False)["input_ids"]
        assert saved.with_template(text)[0].tolist() == official(text)["input_ids"]
    assert saved.special_ids == tokenizer.special_ids
    assert saved.sentinel_ids == tokenizer.sentinel_ids


@pytest.mark.parity
def test_gemma(tmp_path):
    """Its official class reads no SentencePiece file, so it is given the pieces."""
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>"}
    names = {"bos_piece": "<bos>", "eos_piece": "<eos>", "user_defined_symbols": ["<mask>", "\n\n"]}
    options = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
    }
    trained = model(**ids, **names, **options, remove_extra_whitespaces=False)
    folder = write(tmp_path / "gemma", {"tokenizer_class": "GemmaTokenizer"}, tokenizer__model=trained)
    tokenizer = tokenizers.load(folder)
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    parts = SentencePieceExtractor(str(folder / "tokenizer.model")).extract(transformers.GemmaTokenizer.model)
    official = transformers.GemmaTokenizer(vocab=parts["vocab"], merges=parts["merges"])
    official.add_tokens([transformers.AddedToken("\n\n", normalized=False)])
    for text in (*HARD, "one\n\ntwo\n\n\nthree"):
        assert tokenizer.encode(text).tolist() == official(text, add_special_tokens=False)["input_ids"], text
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)


def test_no_text_spells_a_special_token(tokenizer):
    forbidden = tokenizer.special_ids - {tokenizer.unk_id}
    spelled = [*SPELLED, *tokenizer.pieces(sorted(tokenizer.special_ids)[:20])]
    for name in spelled:
        for text in (name, f"a {name} b", f"a{name}b", name * 3, f"{name}\n {name}", f" {name}"):
            ids = tokenizer.encode(text)
            assert len(ids)
            assert forbidden.isdisjoint(ids.tolist()), text


def test_saving_pickling_and_the_original_files(folder, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "saved")
    for copy in (tokenizers.load(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy == tokenizer
        assert copy.vocab_size == tokenizer.vocab_size
        assert [ids.tolist() for ids in copy.encode_batch(HARD)] == [tokenizer.encode(text).tolist() for text in HARD]
        assert tokenizers.fingerprint(copy) == tokenizers.fingerprint(tokenizer)
    tokenizer.write_official(tmp_path / "official")
    written = {path.name: path.read_bytes() for path in (tmp_path / "official").iterdir()}
    assert written == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}
    ids = [tokenizer.bos_id, *tokenizer.encode("a word").tolist(), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids).strip() == "a word"
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud800")
    with pytest.raises(DataError, match="is outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_the_names_of_the_original_files(tmp_path):
    vocab, merges = shared("gpt2_bpe/encoder.json"), shared("gpt2_bpe/vocab.bpe")
    tokenizer = tokenizers.load(write(tmp_path / "gpt2", None, encoder__json=vocab, vocab__bpe=merges))
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (50257, 50256, 50256, 50256)


def test_special_ids_of_the_families(tmp_path):
    bert, five, pegasus_ = wordpiece(tmp_path / "bert"), t5(tmp_path / "t5"), pegasus(tmp_path / "pegasus")
    bert, five, pegasus_ = map(tokenizers.load, (bert, five, pegasus_))
    assert (bert.pad_id, bert.unk_id, bert.bos_id, bert.eos_id, bert.mask_id) == (0, 100, 101, 102, 103)
    assert bert.sentinel_ids == () and bert.named == {}
    assert five.sentinel_ids == tuple(range(32099, 31999, -1))
    assert (five.pad_id, five.eos_id, five.unk_id, five.bos_id, five.mask_id) == (0, 1, 2, 32100, None)
    assert five.encode("Studies have shown that owning a dog is good for you").tolist() == [
        *(6536, 43, 2008, 24, 293, 53, 3, 9, 1782, 19, 207, 21, 25)
    ]
    assert (pegasus_.pad_id, pegasus_.eos_id, pegasus_.mask_id, pegasus_.unk_id) == (0, 1, 3, 105)
    assert pegasus_.named["<mask_1>"] == 2 and pegasus_.bos_id == pegasus_.pad_id
    assert tokenizers.with_specials(five, num_sentinels=100) is five
    assert tokenizers.with_specials(bert, mask=True) is bert
    extended = tokenizers.with_specials(five, mask=True, num_sentinels=101, names=["[R]"])
    assert (extended.mask_id, extended.sentinel_ids[-1], extended.named) == (32101, 32102, {"[R]": 32103})


@pytest.mark.parametrize(
    ("make", "text", "starts"),
    [
        (wordpiece, "unbelievable tokenizations, 上海", "unbelievable| tokenizations|,| 上| 海"),
        (gpt2, "Unbelievable tokenizations,\nnext\n\n  line", "Unbelievable| tokenizations,|\n|next|\n\n| | line"),
        (t5, "Unbelievable tokenizations, a line", "Unbelievable| tokenizations,| a| line"),
    ],
)
def test_word_starts(tmp_path, make, text, starts):
    tokenizer = tokenizers.load(make(tmp_path / "folder"))
    ids = tokenizer.encode(text)
    flags = tokenizer.word_starts(ids)
    words = np.split(ids, np.flatnonzero(flags)[1:])
    assert [tokenizer.decode(word).strip(" ") for word in words] == [word.strip(" ") for word in starts.split("|")]
    both = np.concatenate([ids, [tokenizer.eos_id], ids])
    assert tokenizer.word_starts(both)[len(ids) :].tolist() == [True, *flags]
    assert tokenizer.word_starts(np.stack([ids, ids])).tolist() == [flags.tolist()] * 2


def test_marian_writes_with_the_model_of_the_target(tmp_path):
    folder = marian(tmp_path / "marian")
    source = tokenizers.load(folder)
    target = source.for_target
    assert source.encode(HARD[0]).tolist() != target.encode(HARD[0]).tolist()
    assert tokenizers.fingerprint(source) != tokenizers.fingerprint(target)
    assert target.decode(target.encode("I saw it.")) == "I saw it."
    assert source.named.keys() == {">>fra<<"}
    target.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved") == target


@pytest.mark.parity
def test_marian_target_ids_are_official(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    folder = marian(tmp_path / "marian")
    official = transformers.MarianTokenizer.from_pretrained(folder)
    tokenizer = tokenizers.load(folder).for_target
    for text in HARD:
        assert tokenizer.with_template(text)[0].tolist() == official(text_target=text)["input_ids"]


# Trained here

TEXT = "In the beginning was the word, and the word was 1234.\n\n    def naïve(x):\n        return '早上好' + x\n" * 30
TRAINED = (
    WordPiece(vocab_size=320),
    WordPiece(vocab_size=320, lowercase=False),
    ByteBPE(vocab_size=350),
)


@pytest.fixture(scope="module")
def trained():
    return [tokenizers.train(config, iter([TEXT])) for config in TRAINED]


def test_training_is_deterministic_in_every_process(trained):
    configs = ", ".join(f"config.{config!r}" for config in TRAINED)
    code = f"""from data import config, tokenizer
for choice in ({configs}):
    print(tokenizer.fingerprint(tokenizer.train(choice, iter([{TEXT!r}]))))"""
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == [tokenizers.fingerprint(tokenizer) for tokenizer in trained]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<s>pad/unk[MASK] \n\t早😀Ġ\u2581\x00 é"))
@example(TEXT)
def test_bytes_lose_nothing_and_no_text_spells_a_special_token(text):
    tokenizer = _byte_bpe()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.special_ids.isdisjoint(ids.tolist())


@cache
def _byte_bpe():
    return tokenizers.train(ByteBPE(vocab_size=350), iter([TEXT]))


def test_trained_vocabularies(trained):
    for config, tokenizer in zip(TRAINED, trained, strict=True):
        assert tokenizer.vocab_size <= config.vocab_size
        ids = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id}
        assert ids == set(range(5))
        assert tokenizer.unk_id not in tokenizer.encode(TEXT)
        assert len(tokenizer.encode("the beginning was the word")) <= 6
        if config.kind == "wordpiece":
            same = tokenizer.encode("THE Beginning").tolist() == tokenizer.encode("the beginning").tolist()
            assert same == config.lowercase


def test_usual_names_mean_the_usual_things_where_no_file_says_so(trained, tmp_path):
    for number, tokenizer in enumerate(trained):
        folder = tmp_path / str(number)
        tokenizer.write_official(folder)
        (folder / "tokenizer_config.json").unlink()
        found = tokenizers.load(folder)
        assert found.family == ""
        for role in ("pad_id", "unk_id", "bos_id", "eos_id", "mask_id"):
            assert getattr(found, role) == getattr(tokenizer, role)
        assert found.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_too_little_text_or_vocabulary():
    with pytest.raises(DataError, match=r"vocab_size 300 is too small: this text needs more than \d+; raise"):
        tokenizers.train(WordPiece(vocab_size=300), iter(["".join(map(chr, range(0x4E00, 0x5000)))]))
    for config in TRAINED:
        with pytest.raises(DataError, match="there is no text"):
            tokenizers.train(config, iter(["", " \n"]))


def test_rare_characters_are_unknown():
    text = "plain text with one rare letter ж\n" + "plain text\n" * 1000
    tokenizer = tokenizers.train(WordPiece(vocab_size=300, character_coverage=0.999), iter([text]))
    assert tokenizer.pieces(tokenizer.encode("plain ж"))[-1] == "[UNK]"


@pytest.mark.parity
def test_what_is_trained_or_extended_here_loads_officially(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    configs = [*TRAINED[1:], Bytes(), Characters(), SentencePiece(algorithm="bpe", vocab_size=350)]
    made = [tokenizers.train(config, iter([TEXT])) for config in configs]
    made += [tokenizers.with_specials(made[i], mask=True, num_sentinels=3, names=["[R]"]) for i in range(len(made))]
    made.append(tokenizers.with_specials(tokenizers.load(t5(tmp_path / "t5")), mask=True, names=["[R]"]))
    for number, tokenizer in enumerate(made):
        folder = tmp_path / str(number)
        tokenizer.write_official(folder)
        official = transformers.AutoTokenizer.from_pretrained(folder)
        for text in (TEXT, *HARD):
            if "\u2581" not in text:
                ids = tokenizer.encode(text).tolist()
                assert official(text, add_special_tokens=False)["input_ids"] == ids, (tokenizer.kind, text)
        for role, i in official_roles(official).items():
            assert getattr(tokenizer, f"{role}_id") == i
        assert len(official) == tokenizer.vocab_size
        assert all(official.convert_tokens_to_ids(name) == i for name, i in tokenizer.named.items())


def test_unigram_is_not_exported(tmp_path):
    tokenizer = tokenizers.train(SentencePiece(vocab_size=360), iter([TEXT]))
    with pytest.raises(DataError, match="algorithm=bpe"):
        tokenizer.write_official(tmp_path)


# Mistakes


def test_a_folder_without_a_vocabulary(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps("never opened"))
    with pytest.raises(
        DataError, match=r"none of tokenizer\.json, vocab\.txt, vocab\.json with merges\.txt, enc.*spiece"
    ):
        tokenizers.train(Pretrained(path=str(tmp_path)), iter(()))
    with pytest.raises(DataError, match="there is no such folder"):
        tokenizers.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"spiece__model": b"x"}, r"spiece\.model is there, but neither tokenizer_config\.json nor config\.json tells"),
        ({"spiece__model": b"\xff", "config__json": b'{"model_type": "t5"}'}, "not a SentencePiece model"),
        ({"spiece__model": b"x", "config__json": b'{"model_type": "xlnet"}'}, "its family 'xlnet' is not known"),
        ({"vocab__txt": b"a\nb"}, "the vocabulary lacks"),
        ({"vocab__txt": b"a\nb", "tokenizer_config__json": b"{"}, r"tokenizer_config\.json is damaged"),
        ({"tokenizer__json": b'{"model": {}}'}, r"tokenizer\.json is damaged"),
        ({"tokenizer__json": b'{"model"'}, r"tokenizer\.json is damaged"),
        ({"vocab__json": b"[]", "merges__txt": b""}, r"vocab\.json is damaged"),
        ({"vocab__json": b'{"a": 0}', "merges__txt": b"a"}, "its vocabulary files are damaged"),
        ({"vocab__json": b'{"a": 0}', "merges__txt": b"a b"}, "its vocabulary files are damaged"),
    ],
)
def test_damaged_files(tmp_path, files, message):
    folder = write(tmp_path / "folder", **files)
    with pytest.raises(DataError, match=message) as caught:
        tokenizers.load(folder)
    assert str(caught.value).startswith(str(folder))
    assert "Traceback" not in str(caught.value)


def test_a_saved_file_that_was_changed_is_refused(trained, tmp_path):
    trained[0].save(tmp_path)
    path = next(path for path in (tmp_path / "official").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match="is damaged: its checksum"):
        tokenizers.load(tmp_path)
    shutil.rmtree(tmp_path / "official")
    with pytest.raises(DataError, match="no tokenizer can be read here"):
        tokenizers.load(tmp_path)


def test_without_the_package(tmp_path, monkeypatch):
    folder = wordpiece(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"needs the tokenizers package: pip install 'quire\[hf\]'"):
        tokenizers.load(folder)
    with pytest.raises(DataError, match=r"quire\[hf\]"):
        tokenizers.train(ByteBPE(), iter([TEXT]))
