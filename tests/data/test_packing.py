"""Windows, against literal examples and a slow and obvious packer."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cache import shard_paths
from data.document import DataError
from data.packing import EvalWindows, Stream, TrainWindows, windows
from data.token_cache import TokenCache

PAD, BOS, EOS = 0, 2, 3
SPECIALS = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}


def make_cache(folder, *shards, dtype=np.uint16):
    """Writes a cache of these documents (lists of tokens), shard by shard, and opens it."""
    folder.mkdir(parents=True)
    descriptions = []
    for number, documents in enumerate(shards):
        tokens, lengths, _ = shard_paths(folder, number)
        tokens.write_bytes(np.array([token for document in documents for token in document], dtype).tobytes())
        np.save(lengths, np.array([len(document) for document in documents], np.int64))
        descriptions.append({"num_tokens": sum(map(len, documents)), "num_documents": len(documents)})
    totals = {name: sum(shard[name] for shard in descriptions) for name in ("num_tokens", "num_documents")}
    nothing = dict.fromkeys(
        ("num_characters", "num_bytes", "num_words", "num_empty", "num_of_other_split", "skipped"), 0
    )
    manifest = {
        "key": str(folder),
        "dtype": np.dtype(dtype).name,
        "skipped_messages": [],
        "shards": descriptions,
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, **totals, **nothing}))
    return TokenCache(folder)


def flat(batch, name):
    return batch[name].tolist()


# Literal examples


def test_two_windows_of_three_documents(tmp_path):
    cache = make_cache(tmp_path / "c", [[10, 11, 12], [20]], [[30, 31]])
    stream = Stream.of(cache, np.array([0, 1, 2]))
    batch = windows(stream, np.array([0, 5]), np.array([5, 9]), 5, **SPECIALS, attend_across_documents=False)
    assert flat(batch, "inputs") == [[2, 10, 11, 12, 2], [20, 2, 30, 31, 0]]
    assert flat(batch, "targets") == [[10, 11, 12, 3, 20], [3, 30, 31, 3, 0]]
    assert flat(batch, "weights") == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert flat(batch, "segment_ids") == [[1, 1, 1, 1, 2], [1, 2, 2, 2, 0]]
    assert flat(batch, "positions") == [[0, 1, 2, 3, 0], [0, 0, 1, 2, 0]]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "inputs": "int32",
        "targets": "int32",
        "weights": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }


def test_attending_across_documents_needs_no_segments(tmp_path):
    cache = make_cache(tmp_path / "c", [[10, 11], [20]])
    batch = EvalWindows(cache, length=4).rows(0, 2, **SPECIALS, attend_across_documents=True)
    assert sorted(batch) == ["inputs", "targets", "weights"]
    assert flat(batch, "inputs") == [[2, 10, 11, 2], [20, 0, 0, 0]]
    assert flat(batch, "targets") == [[10, 11, 3, 20], [3, 0, 0, 0]]


def test_the_order_of_documents_is_the_stream(tmp_path):
    cache = make_cache(tmp_path / "c", [[10, 11]], [[20], [30]])
    batch = windows(
        Stream.of(cache, np.array([2, 0, 1])),
        np.array([0]),
        np.array([7]),
        7,
        **SPECIALS,
        attend_across_documents=True,
    )
    assert flat(batch, "targets") == [[30, 3, 10, 11, 3, 20, 3]]


def test_a_stride_predicts_only_the_new_tokens(tmp_path):
    cache = make_cache(tmp_path / "c", [[10, 11, 12, 13, 14, 15]])
    evaluation = EvalWindows(cache, length=4, stride=2)
    batch = evaluation.rows(0, 4, **SPECIALS, attend_across_documents=False)
    assert evaluation.num_windows == 3
    assert flat(batch, "targets") == [[10, 11, 12, 13], [12, 13, 14, 15], [14, 15, 3, 0], [0, 0, 0, 0]]
    assert flat(batch, "inputs") == [[2, 10, 11, 12], [11, 12, 13, 14], [13, 14, 15, 0], [0, 0, 0, 0]]
    assert flat(batch, "weights") == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    for stride in (0, 5):
        with pytest.raises(DataError, match="stride must be between 1 and the length 4"):
            EvalWindows(cache, length=4, stride=stride or -1)


# Against the obvious packer


def obvious_slots(cache, order):
    """Yields (input, target, document, offset) of every slot, one at a time."""
    for document in order:
        tokens = cache.document(document).tolist()
        yield from zip(
            [BOS, *tokens],
            [*tokens, EOS],
            [document] * (len(tokens) + 1),
            range(len(tokens) + 1),
            strict=True,
        )


def unpadded(batch):
    keep = batch["weights"] > 0
    return list(zip(batch["inputs"][keep].tolist(), batch["targets"][keep].tolist(), strict=True))


def unique_documents(lengths):
    """Returns documents in which no token occurs twice, so that a slot is known by its input and target."""
    ends = np.cumsum(lengths) + 4
    return [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]


corpora = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(sum)


@settings(max_examples=150, deadline=None)
@given(
    lengths=corpora,
    split=st.integers(0, 12),
    length=st.integers(2, 20),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_an_epoch_shows_every_slot_once(tmp_path_factory, lengths, split, length, seed, dtype):
    documents = unique_documents(lengths)
    cache = make_cache(tmp_path_factory.mktemp("c") / "c", documents[:split], documents[split:], dtype=dtype)
    train = TrainWindows(cache, length=length, seed=seed)
    slots = list(obvious_slots(cache, range(len(documents))))
    expected = [(i, t) for i, t, _, _ in slots]
    for epoch in range(3):
        batch = train.rows(epoch * train.num_windows, train.num_windows, **SPECIALS, attend_across_documents=False)
        shown = unpadded(batch)
        # (<s>, </s>) of documents without tokens are the only slots that can be alike
        assert all(shown.count(slot) <= expected.count(slot) for slot in shown)
        dropped = len(expected) - len(shown)
        assert dropped == (len(expected) % length if len(expected) > length else 0)
        check_structure(batch, length)


def check_structure(batch, length):
    for row in range(len(batch["inputs"])):
        inputs, targets, segments, positions, weights = (
            batch[name][row].tolist() for name in ("inputs", "targets", "segment_ids", "positions", "weights")
        )
        used = int(sum(weights))
        assert weights == [1] * used + [0] * (length - used)
        assert segments[used:] == inputs[used:] == targets[used:] == positions[used:] == [0] * (length - used)
        assert segments[:1] == [1]
        for k in range(used):
            starts = k == 0 or inputs[k] == BOS
            assert positions[k] == (0 if starts else positions[k - 1] + 1)
            if k:
                assert segments[k] == segments[k - 1] + (inputs[k] == BOS)
                assert (targets[k - 1] == EOS) == (inputs[k] == BOS)
                assert inputs[k] in (BOS, targets[k - 1])


@settings(max_examples=100, deadline=None)
@given(lengths=corpora, length=st.integers(2, 20), data=st.data())
def test_evaluation_predicts_every_slot_once_and_in_order(tmp_path_factory, lengths, length, data):
    documents = unique_documents(lengths)
    cache = make_cache(tmp_path_factory.mktemp("c") / "c", documents[:3], documents[3:])
    evaluation = EvalWindows(cache, length=length, stride=data.draw(st.integers(1, length)))
    batch = evaluation.rows(0, evaluation.num_windows + 2, **SPECIALS, attend_across_documents=False)
    assert unpadded(batch) == [(i, t) for i, t, _, _ in obvious_slots(cache, range(len(documents)))]
    assert batch["weights"][evaluation.num_windows - 1].any()
    assert not batch["weights"][evaluation.num_windows :].any()


@settings(max_examples=50, deadline=None)
@given(lengths=corpora, length=st.integers(2, 20), first=st.integers(0, 2**40), count=st.integers(1, 9))
def test_rows_do_not_depend_on_what_they_are_read_with(tmp_path_factory, lengths, length, first, count):
    cache = make_cache(tmp_path_factory.mktemp("c") / "c", unique_documents(lengths))
    together = TrainWindows(cache, length=length, seed=7).rows(first, count, **SPECIALS, attend_across_documents=False)
    alone = TrainWindows(cache, length=length, seed=7)
    for row in reversed(range(count)):
        single = alone.rows(first + row, 1, **SPECIALS, attend_across_documents=False)
        for name, array in single.items():
            np.testing.assert_array_equal(array[0], together[name][row])


def test_epochs_and_seeds_differ_in_order_and_boundaries(tmp_path):
    cache = make_cache(tmp_path / "c", unique_documents([10_000]))

    def epoch(number, seed):
        train = TrainWindows(cache, length=10, seed=seed)
        batch = train.rows(number * train.num_windows, train.num_windows, **SPECIALS, attend_across_documents=True)
        return {tuple(row) for row in batch["targets"].tolist()}

    assert len({frozenset(epoch(number, seed)) for number in range(3) for seed in range(3)}) == 9


def test_the_order_is_the_same_on_every_version_of_numpy(tmp_path):
    cache = make_cache(tmp_path / "c", unique_documents([3, 5, 2, 4]))
    batch = TrainWindows(cache, length=6, seed=1).rows(0, 3, **SPECIALS, attend_across_documents=True)
    assert flat(batch, "targets") == GOLDEN


GOLDEN = [[9, 10, 11, 3, 12, 13], [4, 5, 6, 3, 7, 8], [3, 14, 15, 16, 17, 3]]
