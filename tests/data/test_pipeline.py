"""The order of training is one, whoever reads it, from wherever it goes on; a second start costs nothing."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import tokenizer as tokenizers
from data.config import Bytes, Characters, Cleaning, DataConfig, Files, MaskedLM, PrefixLM, PythonDocs, SentencePiece
from data.document import DataError
from data.pipeline import eval_batches, prepare, train_batches
from data.tokenizer import ByteTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(f"line {i} has {i % 7 * 'some '}words" for i in range(300)))
    return path


def config_for(path, cache_dir, **options):
    options.setdefault("tokenizer", Bytes())
    return DataConfig(train=(Files(path=str(path), document="line"),), cache_dir=str(cache_dir), **options)


@pytest.fixture(scope="module")
def corpus(corpus_file, tmp_path_factory):
    return prepare(config_for(corpus_file, tmp_path_factory.mktemp("cache")))


def batches_of(corpus, **options):
    defaults = {"length": 32, "batch_size": 8, "seed": 5, "attend_across_documents": False}
    return train_batches(corpus.train, tokenizer=corpus.tokenizer, **{**defaults, **options})


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def assert_same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# Order and state


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_the_global_order_does_not_depend_on_the_number_of_processes(corpus, process_count):
    alone = take(batches_of(corpus), 60)
    parts = [take(batches_of(corpus, process_index=p, process_count=process_count), 60) for p in range(process_count)]
    joined = [{name: np.concatenate([part[i][name] for part in parts]) for name in alone[0]} for i in range(60)]
    assert_same(alone, joined)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_order_does_not_depend_on_the_number_of_workers(corpus, num_workers, capfd):
    alone = take(batches_of(corpus), 12)
    batches = batches_of(corpus, num_workers=num_workers, prefetch=num_workers)
    batches.set_state({**batches.get_state(), "next_batch": 3})
    assert_same(alone[3:], take(batches, 9))
    assert capfd.readouterr().err == ""


def test_prefetching_does_not_change_the_order(corpus):
    assert_same(take(batches_of(corpus, prefetch=1), 10), take(batches_of(corpus, prefetch=16), 10))


def test_going_on_at_any_step_equals_never_having_stopped(corpus):
    straight = take(batches_of(corpus), 64)
    epoch = corpus.train.num_tokens // 32 // 8
    assert epoch < 60  # so that the steps cross into a second epoch
    batches = batches_of(corpus)
    for step in range(64):
        state = json.loads(json.dumps(batches.get_state()))
        assert state["next_batch"] == step
        resumed = batches_of(corpus)
        resumed.set_state(state)
        assert_same(straight[step : step + 2], take(resumed, 2)[: 64 - step])
        next(batches)
    batches.set_state({**batches.get_state(), "next_batch": 7})  # back, too
    assert_same(straight[7:9], take(batches, 2))


def test_a_step_far_away_is_as_near_as_any(corpus):
    batches = batches_of(corpus)
    batches.set_state({**batches.get_state(), "next_batch": 2**40 - 2})
    start = time.monotonic()
    assert take(batches, 1)[0]["inputs"].shape == (8, 32)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "seed (saved 5, now 6)"),
        ({"batch_size": 16}, "batch_size (saved 8, now 16)"),
        ({"length": 64}, "length (saved 32, now 64)"),
        ({"attend_across_documents": True}, "attend_across_documents (saved False, now True)"),
        (
            {"objective": PrefixLM()},
            "objective (saved None, now {'kind': 'prefix_lm', 'stack': 'decoder', 'target_length': None, "
            "'decoder_start_id': None})",
        ),
    ],
)
def test_a_state_of_other_batches_is_refused(corpus, change, message):
    other = batches_of(corpus, **change)
    with pytest.raises(DataError) as caught:
        other.set_state(batches_of(corpus).get_state())
    assert str(caught.value) == f"the data are not those of the saved state; different: {message}"


def test_a_state_of_other_data_is_refused(corpus, corpus_file, tmp_path):
    config = config_for(corpus_file, tmp_path, cleaning=Cleaning(white_space=True))
    with pytest.raises(DataError, match="different: cache"):
        batches_of(prepare(config)).set_state(batches_of(corpus).get_state())


@pytest.mark.parametrize("state", [None, {}, {"next_batch": "3"}, {"next_batch": -1}, {"next_batch": True}])
def test_what_is_no_state_is_refused(corpus, state):
    with pytest.raises(DataError, match="this is not the state of a data iterator"):
        batches_of(corpus).set_state(state)


def test_rows_must_divide_among_processes(corpus):
    with pytest.raises(DataError, match="batch_size 8 is not divisible by the number of processes, 3"):
        batches_of(corpus, process_count=3)


def test_batches_go_on_after_close(corpus):
    batches = batches_of(corpus)
    first = next(batches)
    batches.close()
    assert_same(take(batches_of(corpus), 3), [first, next(batches), next(batches)])
    batches.close()


# Evaluation


@pytest.mark.parametrize("stride", [None, 8])
@pytest.mark.parametrize("attend_across_documents", [False, True])
def test_evaluation_covers_the_text_in_order(corpus, stride, attend_across_documents):
    batches = eval_batches(
        corpus.validation,
        tokenizer=corpus.tokenizer,
        length=32,
        batch_size=8,
        attend_across_documents=attend_across_documents,
        stride=stride,
    )
    seen = list(batches)
    assert len(seen) == len(batches)
    assert_same(seen, list(batches))
    assert all(batch["inputs"].shape == (8, 32) for batch in seen)
    targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in seen])
    documents = [corpus.validation.document(i).tolist() + [3] for i in range(corpus.validation.num_documents)]
    assert targets.tolist() == sum(documents, [])


# Preparing


def test_held_out_documents_are_not_trained_on(corpus, corpus_file):
    def texts(cache):
        return {corpus.tokenizer.decode(cache.document(i)) for i in range(cache.num_documents)}

    train, validation = texts(corpus.train), texts(corpus.validation)
    assert train | validation == set(corpus_file.read_text().split("\n"))
    assert not train & validation
    assert 0 < len(validation) < 0.15 * len(train)


def test_the_tokenizer_never_sees_held_out_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(chr(0x4E00 + i) for i in range(500)))
    corpus = prepare(config_for(path, tmp_path / "cache", tokenizer=Characters(), held_out_fraction=0.3))
    assert len(corpus.tokenizer.alphabet) == corpus.train.num_documents < 500
    assert (corpus.validation.document(0) == corpus.tokenizer.unk_id).all()


def test_held_out_documents_are_the_same_for_the_tokenizer_where_text_is_detokenized(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"{chr(0x4E00 + i)} @-@ b ." for i in range(500)))
    cleaning = Cleaning(detokenize="wikitext")
    corpus = prepare(
        config_for(path, tmp_path / "cache", tokenizer=Characters(), held_out_fraction=0.3, cleaning=cleaning)
    )
    assert len(corpus.tokenizer.alphabet) == corpus.train.num_documents + len("-b.") < 500
    assert (corpus.train.document(0) != corpus.tokenizer.unk_id).all()


@pytest.mark.parametrize("option", [{"augmentation": {"delete": 0.1}}, {"test": "other.txt"}])
def test_options_of_tasks_are_refused_for_language_models(corpus_file, tmp_path, option):
    with pytest.raises(DataError, match=f"data.{next(iter(option))} is for tasks of labelled records, not"):
        prepare(config_for(corpus_file, tmp_path, **option))


def test_nothing_is_held_out_where_there_is_a_validation_set(corpus_file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "other words"}')
    config = config_for(corpus_file, tmp_path, validation=(Files(path=str(other)),))
    corpus = prepare(config)
    assert (corpus.train.num_documents, corpus.validation.num_documents) == (300, 1)
    assert prepare(config_for(corpus_file, tmp_path, held_out_fraction=0)).validation is None


def test_a_second_start_trains_and_tokenizes_nothing(corpus_file, tmp_path, monkeypatch):
    config = config_for(corpus_file, tmp_path, tokenizer=SentencePiece(vocab_size=300))
    lines = []
    first = prepare(config, report=lines.append)
    assert any("training the tokenizer" in line for line in lines)
    monkeypatch.setattr(tokenizers, "train", None)
    again = prepare(config, report=pytest.fail)
    assert (again.train.key, again.validation.key) == (first.train.key, first.validation.key)
    assert again.tokenizer == first.tokenizer
    given = prepare(config, tokenizer=ByteTokenizer())
    assert given.tokenizer == ByteTokenizer()
    assert given.train.num_tokens == given.train.num_bytes


def test_an_objective_gets_its_special_tokens_and_the_same_cache(corpus, corpus_file, tmp_path):
    config = config_for(corpus_file, corpus.train.folder.parent)
    masked = prepare(config, objective=MaskedLM(), report=pytest.fail)
    assert (masked.train.key, masked.validation.key) == (corpus.train.key, corpus.validation.key)
    assert (masked.tokenizer.mask_id, corpus.tokenizer.mask_id) == (260, None)
    masked.tokenizer.save(tmp_path)
    saved = tokenizers.load(tmp_path)
    again = prepare(config, objective=MaskedLM(), tokenizer=saved, report=pytest.fail)
    assert again.tokenizer is saved


def test_one_short_document_cannot_be_split(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a note of one document")
    config = DataConfig(train=(Files(path=str(path)),), tokenizer=Characters(), cache_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"the \w+ part is empty: of 1 documents .* set held_out_fraction to 0"):
        prepare(config)


def test_the_embedded_corpus_needs_no_files(tmp_path):
    config = DataConfig(tokenizer=Bytes(), cache_dir=str(tmp_path))
    assert config.train == (PythonDocs(),)
    corpus = prepare(config)
    assert corpus.train.num_bytes > 1_000_000
    start = time.monotonic()
    prepare(config)
    assert time.monotonic() - start < 2


def test_real_text_of_two_languages(wikitext2, shared_dataset, tmp_path):
    english, chinese = wikitext2 / "valid.txt", shared_dataset("topic/thucnews_titles") / "dev.txt"
    sources = (Files(path=str(english), document="line"), Files(path=str(chinese), document="line"))
    tokenizer = SentencePiece(algorithm="bpe", vocab_size=8000)
    config = DataConfig(train=sources, tokenizer=tokenizer, cache_dir=str(tmp_path), held_out_fraction=0)
    corpus = prepare(config)
    lines = [line for path in (english, chinese) for line in path.read_text().split("\n") if line.strip()]
    decoded = [corpus.tokenizer.decode(corpus.train.document(i)) for i in range(corpus.train.num_documents)]
    assert decoded == lines
    assert corpus.train.num_characters / corpus.train.num_tokens > 2.5


def test_windows_and_caches_travel_to_workers(corpus):
    batches = batches_of(corpus)
    copy = pickle.loads(pickle.dumps(batches._source))
    assert_same([batches._source[3]], [copy[3]])
    assert len(pickle.dumps(batches._source)) < 10_000  # a path, not the tokens


def test_short_forms_of_sources():
    config = DataConfig(train="a.txt", validation=["python_docs", {"kind": "files", "path": "b.txt"}])
    assert config.train == (Files(path="a.txt"),)
    assert config.validation == (PythonDocs(), Files(path="b.txt"))
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


# Processes

READ = """
import multiprocessing, pathlib, sys, time
from data.pipeline import train_batches
from data.token_cache import TokenCache
from data.tokenizer import ByteTokenizer

if __name__ == "__main__":
    batches = train_batches(
        TokenCache(sys.argv[1]), tokenizer=ByteTokenizer(), length=32, batch_size=8, seed=0,
        attend_across_documents=False, num_workers=int(sys.argv[2]),
    )
    for _ in range(3):
        next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[3] == "wait":
        time.sleep(60)
    if sys.argv[3] == "close":
        batches.close()
"""


def start_reader(corpus, tmp_path, num_workers, ending):
    script = tmp_path / "read.py"
    script.write_text(READ)
    command = [sys.executable, str(script), str(corpus.train.folder), str(num_workers), ending]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("ending", ["close", "leave"])
def test_a_program_ends_quietly(corpus, tmp_path, num_workers, ending):
    reader = start_reader(corpus, tmp_path, num_workers, ending)
    workers, errors = reader.communicate(timeout=60)
    assert (reader.returncode, errors) == (0, "")
    assert not any(is_alive(int(pid)) for pid in workers.split())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look at other processes")
def test_no_worker_survives_a_killed_program(corpus, tmp_path):
    reader = start_reader(corpus, tmp_path, 2, "wait")
    workers = [int(pid) for pid in reader.stdout.readline().split()]
    assert len(workers) == 2
    assert all(is_alive(pid) for pid in workers)
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in workers)
    reader.stdout.close()
    reader.stderr.close()


def test_configs_are_quick_to_import():
    heavy = ("numpy", "grain", "sentencepiece", "jax", "ftfy")
    code = f"import sys, data.config; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
