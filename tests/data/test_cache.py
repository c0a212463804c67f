"""A cache's bytes depend on its inputs alone: not on kills, the number of processes or other builders."""

import gzip
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import cache as caches
from data import tokenizer as tokenizers
from data.cache import Split, build, count_words
from data.config import Characters, Cleaning, Files
from data.document import DataError
from data.storage import write_atomically
from data.token_cache import TokenCache
from data.tokenizer import ByteTokenizer

ROOT = Path(__file__).parents[2]
BYTES = ByteTokenizer()
NO_CLEANING = Cleaning()


@pytest.fixture
def corpus(tmp_path):
    """600 lines, and chunks so small that they make some 20 shards."""
    words = "alpha beta gamma delta epsilon zeta eta theta".split()
    draw = random.Random(0)
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 20))) + f" {i}" for i in range(600)]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines))
    return path, lines


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(caches, "CHUNK_CHARACTERS", 2000)


def make(path, cache_dir, *, cleaning=NO_CLEANING, tokenizer=BYTES, document="line", processes=1, **options):
    source = Files(path=str(path), document=document, **options.pop("source", {}))
    return build((source,), cleaning, tokenizer, cache_dir, processes=processes, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents(cache):
    return [BYTES.decode(cache.document(i)) for i in range(cache.num_documents)]


def test_the_cache_holds_every_document_in_order(corpus, tmp_path):
    path, lines = corpus
    cache = make(path, tmp_path / "cache")
    assert documents(cache) == lines
    assert cache.num_documents == len(lines)
    assert cache.num_tokens == cache.num_bytes == sum(len(line.encode()) for line in lines)
    assert cache.num_words == sum(len(line.split()) for line in lines)
    assert cache.lengths.tolist() == [len(line) for line in lines]
    assert len(list(cache.folder.glob("*.bin"))) > 15


def test_ranges_are_taken_from_any_shards_in_any_order(corpus, tmp_path):
    cache = make(corpus[0], tmp_path / "cache")
    everything = np.concatenate([cache.document(i) for i in range(cache.num_documents)])
    draw = np.random.default_rng(0)
    chosen = draw.integers(cache.num_documents, size=500)
    skip = draw.integers(cache.lengths[chosen] + 1)
    starts, lengths = cache.starts[chosen] + skip, cache.lengths[chosen] - skip
    expected = [everything[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    np.testing.assert_array_equal(cache.take_ranges(starts, lengths), np.concatenate(expected))


def test_a_second_build_reads_the_first(corpus, tmp_path):
    first = make(corpus[0], tmp_path / "cache")
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert make(corpus[0], tmp_path / "cache").key == first.key
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_every_choice_makes_another_cache(corpus, tmp_path):
    path, lines = corpus
    other = tmp_path / "other.txt"
    other.write_text("\n".join(lines) + "!")
    cache_dir = tmp_path / "cache"
    keys = [
        make(path, cache_dir).key,
        make(other, cache_dir).key,
        make(path, cache_dir, document="file").key,
        make(path, cache_dir, cleaning=Cleaning(white_space=True)).key,
        make(path, cache_dir, tokenizer=tokenizers.train(Characters(), iter(lines))).key,
        make(path, cache_dir, split=Split(0.1, "train")).key,
        make(path, cache_dir, split=Split(0.1, "validation")).key,
    ]
    path.write_text("\n".join(lines)[::-1])
    keys.append(make(path, cache_dir).key)
    assert len(set(keys)) == len(keys)
    (tmp_path / "moved").mkdir()
    assert make(path.rename(tmp_path / "moved" / path.name), cache_dir).key == keys[-1]


def test_processes_do_not_change_the_bytes(corpus, tmp_path):
    one = make(corpus[0], tmp_path / "one", processes=1)
    two = make(corpus[0], tmp_path / "two", processes=2)
    assert content(one.folder) == content(two.folder)


def test_a_split_parts_the_documents_by_their_text(corpus, tmp_path):
    path, lines = corpus
    parts = {part: make(path, tmp_path / "c", split=Split(0.2, part)) for part in ("train", "validation")}
    train, validation = documents(parts["train"]), documents(parts["validation"])
    assert sorted(train + validation) == sorted(lines)
    assert 0.1 < len(validation) / len(lines) < 0.3
    assert parts["train"].num_of_other_split == len(validation)
    path.write_text("\n".join(["a new line", *reversed(lines)]))
    moved = documents(make(path, tmp_path / "c", split=Split(0.2, "validation")))
    assert set(moved) - {"a new line"} == set(validation)


def test_of_a_long_document_the_end_is_held_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(text := "".join(f"{n:5}" for n in range(4000)))
    parts = [make(path, tmp_path / "c", document="file", split=Split(0.1, part)) for part in ("train", "validation")]
    (train,), (validation,) = map(documents, parts)
    assert train + validation == text
    assert len(validation) == 2000


def test_an_empty_split_says_what_helps(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the only document")
    part = "train" if Split(0.5, "validation").select(path.read_text()) else "validation"
    with pytest.raises(DataError, match=rf"the {part} part is empty: of 1 documents .*\(document=paragraph"):
        make(path, tmp_path / "c", document="file", split=Split(0.5, part))


def test_documents_without_text_are_dropped_and_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\n \t\n<br>\ntwo")
    cache = make(path, tmp_path / "c", cleaning=Cleaning(html=True))
    assert (documents(cache), cache.num_empty) == (["one", "two"], 3)
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"a\.txt: there is no text \(2 empty documents, 0 skipped records\)"):
        make(path, tmp_path / "c")


def test_skipped_records_are_counted_in_the_cache(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{\n{"text": "two"}\n')
    lines = []
    cache = make(path, tmp_path / "c", source={"on_error": "skip"}, report=lines.append)
    assert (documents(cache), cache.skipped) == (["one", "two"], 1)
    assert cache.skipped_messages[0].startswith(f"{path}:2: is not valid JSON")
    assert any("1 bad records skipped" in line for line in lines)


def test_a_source_that_changes_while_it_is_read(corpus, tmp_path, monkeypatch):
    path, _ = corpus
    make_shard = caches._make_shard

    def and_change(*arguments):
        path.write_text("changed")
        return make_shard(*arguments)

    monkeypatch.setattr(caches, "_make_shard", and_change)
    with pytest.raises(DataError, match="a source changed while it was being read"):
        make(path, tmp_path / "c")


def test_large_vocabularies_take_four_bytes(tmp_path):
    alphabet = "".join(chr(i) for i in range(0x10000, 0x10000 + 70_000))
    tokenizer = tokenizers.train(Characters(), iter([alphabet]))
    path = tmp_path / "a.txt"
    path.write_text(alphabet[-3:])
    cache = make(path, tmp_path / "c", tokenizer=tokenizer)
    assert cache.document(0).tolist() == [70_001, 70_002, 70_003]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "shard-00003.bin").unlink(),
        lambda folder: (folder / "shard-00003.bin").write_bytes(b"cut"),
        lambda folder: (folder / "shard-00003.lengths.npy").write_bytes(b"junk"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text("{"),
    ],
)
def test_a_damaged_cache_is_refused_and_can_be_mended(corpus, tmp_path, damage):
    cache = make(corpus[0], tmp_path / "c")
    whole = content(cache.folder)
    damage(cache.folder)
    with pytest.raises(DataError, match="the token cache is damaged; delete the folder"):
        TokenCache(cache.folder)
    (cache.folder / "manifest.json").unlink()
    assert content(make(corpus[0], tmp_path / "c").folder) == whole


def test_wikitext_has_its_published_number_of_words(wikitext2, tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "CHUNK_CHARACTERS", 4_000_000)
    path = wikitext2 / "test.txt"
    cache = make(path, tmp_path / "c", document="file")
    assert cache.num_words == 245_569
    assert cache.num_bytes == path.stat().st_size


def test_words_and_line_ends():
    assert count_words("") == 0
    assert count_words(" a  b\n\n c") == 5


def test_a_corpus_is_detokenized_after_its_words_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text(" = = Career = = \n He didn 't wait , he left . \n")
    plain = make(tmp_path / "a.txt", tmp_path / "c", document="file")
    written = make(tmp_path / "a.txt", tmp_path / "c", document="file", cleaning=Cleaning(detokenize="wikitext"))
    assert documents(written) == ["== Career ==\nHe didn't wait, he left.\n"]
    assert (written.num_words, written.num_bytes) == (plain.num_words, plain.num_bytes) == (15, 47)


# Kills

BUILD = """
import sys
from data import cache
from data.config import Cleaning, Files
from data.tokenizer import ByteTokenizer

if __name__ == "__main__":
    cache.CHUNK_CHARACTERS = 2000
    source = Files(path=sys.argv[1], document="line")
    cache.build((source,), Cleaning(), ByteTokenizer(), sys.argv[2], processes=int(sys.argv[3]))
"""


def start_build(tmp_path, path, cache_dir, processes):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(path), str(cache_dir), str(processes)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(corpus, tmp_path, processes):
    path, _ = corpus
    whole = make(path, tmp_path / "whole")
    total = len(list(whole.folder.glob("shard-*.json")))
    cache_dir = tmp_path / "killed"
    kills = 0
    for wanted in (1, total // 2, total):
        build_process = start_build(tmp_path, path, cache_dir, processes)
        while build_process.poll() is None and len(list(cache_dir.glob("*/shard-*.json"))) < wanted:
            time.sleep(0.0005)
        if build_process.poll() is None:
            build_process.send_signal(signal.SIGKILL)
            build_process.wait()
            kills += 1
    assert kills >= 2
    before = {file.name: file.stat().st_mtime_ns for file in cache_dir.glob("*/shard-*.json")}
    time.sleep(0.2)  # until orphaned workers are gone
    resumed = make(path, cache_dir)
    assert content(resumed.folder) == content(whole.folder)
    kept = [name for name, when in before.items() if (resumed.folder / name).stat().st_mtime_ns == when]
    assert len(kept) >= total // 2


def test_a_build_that_is_killed_at_its_very_end_leaves_no_file_of_another_behind(corpus, tmp_path, monkeypatch):
    path, _ = corpus
    whole = make(path, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(caches, "remove_abandoned", lambda folder: sys.exit("killed"))
        with pytest.raises(SystemExit):
            make(path, tmp_path / "killed")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder,) = (tmp_path / "killed").glob("*/")
    (folder / f".shard-00000.bin.{socket.gethostname()}.{gone.pid}.tmp").write_bytes(b"")
    assert content(make(path, tmp_path / "killed").folder) == content(whole.folder)


def test_two_builders_at_once(corpus, tmp_path):
    path, _ = corpus
    whole = make(path, tmp_path / "whole")
    builders = [start_build(tmp_path, path, tmp_path / "shared", 1) for _ in range(2)]
    assert [builder.wait(60) for builder in builders] == [0, 0]
    assert content(make(path, tmp_path / "shared").folder) == content(whole.folder)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DataError, match="file: cannot be written: No space left on device"):
        write_atomically(target, b"new")
    assert content(tmp_path) == {"file": b"old"}


def test_compressed_and_plain_files_make_the_same_tokens(corpus, tmp_path):
    path, _ = corpus
    packed = tmp_path / "packed.txt.gz"
    with open(path, "rb") as plain, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(plain, target)
    assert documents(make(path, tmp_path / "a")) == documents(make(packed, tmp_path / "b"))
