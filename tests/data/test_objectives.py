"""Each objective does what its paper says, and is the same whoever makes the batch, of whatever size, at any time."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data import denoising, masking, objectives
from data.batches import BatchMaker
from data.config import (
    UL2,
    Bytes,
    CausalLM,
    DataConfig,
    Files,
    GapSentences,
    MaskedLM,
    Objective,
    PrefixLM,
    ReplacedTokens,
    SpanCorruption,
    TextInfilling,
)
from data.document import DataError
from data.packing import EvalWindows, TrainWindows
from data.pipeline import eval_batches, prepare, train_batches
from data.sentences import SentenceMarks, gap_sentences, permute, rouge_1, split_sentences
from data.tokenizer import ByteTokenizer, CharacterTokenizer

PAD, UNK, BOS, EOS = range(4)
MASK = 260  # the first id after the bytes
LENGTH = 64

# Every objective on every stack that it can train.
WAYS = [
    (CausalLM(), "decoder"),
    (PrefixLM(), "decoder"),
    (PrefixLM(), "encoder_decoder"),
    (MaskedLM(), "encoder"),
    (MaskedLM(masking="span", duplicates=3), "encoder"),
    (MaskedLM(sentence_pairs="next_sentence"), "encoder"),
    (MaskedLM(masking="whole_word", sentence_pairs="sentence_order"), "encoder"),
    (ReplacedTokens(masking="ngram"), "encoder"),
    (SpanCorruption(), "encoder_decoder"),
    (SpanCorruption(), "decoder"),
    (UL2(), "encoder_decoder"),
    (UL2(mode_tokens=False), "decoder"),
    (TextInfilling(), "encoder_decoder"),
    (TextInfilling(), "decoder"),
    (GapSentences(min_rate=0.15), "encoder_decoder"),
    (GapSentences(), "decoder"),
]


def each(ways):
    return pytest.mark.parametrize(("objective", "stack"), ways, ids=lambda value: getattr(value, "kind", value))


EACH_WAY = each(WAYS)
WITH_TARGETS = [
    way for way in WAYS if way[1] != "encoder" and way not in ((CausalLM(), "decoder"), (PrefixLM(), "decoder"))
]
PAIRED = [way for way in WAYS if getattr(way[0], "sentence_pairs", "none") != "none"]
WITH_WHOLE_TEXT = [way for way in WAYS if way[0].kind not in ("gap_sentences", "ul2") and way not in PAIRED]


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    words = "the of and a small word stands here while longer expressions follow it".split()
    random = generator()
    lines = [
        " ".join(random.choice(words, 5).tolist() + [f"number {i}. It", *random.choice(words, 4).tolist()]) + "!"
        for i in range(300)
    ]
    (folder / "corpus.txt").write_text("\n".join(lines))
    source = Files(path=str(folder / "corpus.txt"), document="line")
    return prepare(DataConfig(train=(source,), tokenizer=Bytes(), cache_dir=str(folder), held_out_fraction=0.1))


def arguments(corpus, objective, **options):
    tokenizer = objectives.objective_tokenizer(corpus.tokenizer, objective, LENGTH)
    return {
        "tokenizer": tokenizer,
        "length": LENGTH,
        "batch_size": 8,
        "attend_across_documents": False,
        "objective": objective,
        **options,
    }


def training(corpus, objective, **options):
    return train_batches(corpus.train, **arguments(corpus, objective, **{"seed": 5, **options}))


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def rows(batches):
    """Returns the rows of all the batches, each as one dict."""
    return [{name: array[i] for name, array in b.items()} for b in batches for i in range(len(b[next(iter(b))]))]


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# Whoever makes the batch


@EACH_WAY
def test_an_example_does_not_depend_on_batch_size_hosts_or_resumption(corpus, objective, stack):
    batches = take(training(corpus, objective, stack=stack), 60)
    alone = rows(batches)
    assert_same(alone[:64], rows(take(training(corpus, objective, stack=stack, batch_size=2), 32)))
    for count in (2, 4):
        parts = [
            take(training(corpus, objective, stack=stack, process_index=p, process_count=count), 4)
            for p in range(count)
        ]
        assert_same(alone[:32], [row for step in range(4) for part in parts for row in rows([part[step]])])
    resumed = training(corpus, objective, stack=stack)
    resumed.set_state(json.loads(json.dumps({**resumed.get_state(), "next_batch": 57})))
    assert_same(batches[57:], take(resumed, 3))


@each(PAIRED[:1])
def test_examples_do_not_depend_on_workers(corpus, objective, stack):
    alone = take(training(corpus, objective, stack=stack), 4)
    assert_same(alone, take(training(corpus, objective, stack=stack, num_workers=2, prefetch=2), 4))


@EACH_WAY
def test_seeds_and_epochs_differ_and_evaluations_do_not(corpus, objective, stack):
    one, two = (take(training(corpus, objective, stack=stack, seed=seed), 1) for seed in (5, 6))
    name = "inputs" if "inputs" in one[0] else "encoder_inputs"
    assert (one[0][name] != two[0][name]).any()
    evaluation = eval_batches(corpus.validation, **arguments(corpus, objective, stack=stack))
    assert_same(list(evaluation), list(evaluation))
    other_size = eval_batches(corpus.validation, **arguments(corpus, objective, stack=stack, batch_size=3))
    count = min(len(evaluation) * 8, len(other_size) * 3)
    assert_same(rows(evaluation)[:count], rows(other_size)[:count])


@EACH_WAY
def test_padding_has_no_weight_and_arrays_have_their_shapes(corpus, objective, stack):
    for batch in [*take(training(corpus, objective, stack=stack), 3), *eval_batches(
        corpus.validation, **arguments(corpus, objective, stack=stack)
    )]:  # fmt: skip
        for part in ("", "encoder_", "decoder_"):
            if f"{part}segment_ids" not in batch:
                continue
            padding = batch[f"{part}segment_ids"] == 0
            assert (batch[f"{part}inputs"][padding] == PAD).all()
            assert (batch[f"{part}positions"][padding] == 0).all()
            if f"{part}weights" in batch:
                assert (batch[f"{part}weights"][padding] == 0).all()
                assert (batch[f"{part}targets"][batch[f"{part}weights"] > 0] != PAD).all()
        for name, array in batch.items():
            kind = "float32" if name.endswith("weights") else "bool" if name == "prefix" else "int32"
            assert array.dtype.name == kind, name
            assert name.startswith(("decoder_", "sentence_")) or array.shape == (8, LENGTH)


@each(WITH_WHOLE_TEXT)
def test_evaluation_shows_every_token_once(corpus, objective, stack):
    shown = []
    sentinels = objectives.objective_tokenizer(corpus.tokenizer, objective, LENGTH).sentinel_ids
    for row in rows(eval_batches(corpus.validation, **arguments(corpus, objective, stack=stack))):
        if "encoder_inputs" in row:
            inputs = row["encoder_inputs"][row["encoder_segment_ids"] > 0]
            targets = row["decoder_targets"][row["decoder_weights"] > 0]
        elif "prefix" in row and objective.kind != "prefix_lm":
            inputs, targets = row["inputs"][row["prefix"]], row["targets"][row["weights"] > 0]
        else:
            inputs, targets = None, row["targets"][row.get("segment_ids", row["weights"]) > 0]
        if objective.kind == "span_corruption" and len(inputs):
            targets = denoising.uncorrupt(inputs[:-1], targets[:-1], np.array(sentinels))
        elif objective.kind == "prefix_lm" and inputs is not None:
            targets = np.concatenate([inputs, targets])
        shown += [token for token in targets.tolist() if token > EOS]
    expected = np.concatenate([corpus.validation.document(i) for i in range(corpus.validation.num_documents)])
    assert shown == expected.tolist()


@EACH_WAY
def test_states_name_the_objective(corpus, objective, stack):
    state = training(corpus, objective, stack=stack).get_state()
    other = training(corpus, SpanCorruption(rate=0.2))
    with pytest.raises(DataError, match=r"different: objective \(saved"):
        other.set_state(state)


def test_states_from_before_there_were_objectives_still_resume(corpus):
    batches = training(corpus, CausalLM())
    state = {name: value for name, value in batches.get_state().items() if name != "objective"}
    batches.set_state({**state, "next_batch": 3})
    assert batches.get_state()["next_batch"] == 3


# Masked language modeling

NUM_TOKENS = 100_000
MASKINGS = ("token", "whole_word", "span", "ngram")


def sigmas(hits, trials, rate):
    """How many standard deviations of a binomial distribution `hits` of `trials` are from `rate`."""
    return abs(hits - trials * rate) / np.sqrt(trials * rate * (1 - rate))


def masked(objective, num_rows=200, row_length=NUM_TOKENS // 200):
    """Yields (tokens, hidden, chosen, word_starts) of random texts of words of one to four tokens."""
    for row in range(num_rows):
        random = generator(row)
        tokens = random.integers(4, MASK, row_length).astype(np.int32)
        word_starts = random.random(row_length) < 0.6
        candidates = np.ones(row_length, bool)
        chosen = masking.choose_tokens(candidates, word_starts, objective, random)
        ids = {"mask_id": MASK, "ordinary_ids": np.arange(4, MASK, dtype=np.int32)}
        yield tokens, masking.hide_tokens(tokens, chosen, objective, **ids, random=random), chosen, word_starts


@pytest.mark.parametrize("masking_kind", MASKINGS)
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_share_of_chosen_tokens_is_the_rate(masking_kind, rate):
    chosen = np.concatenate([row[2] for row in masked(MaskedLM(rate=rate, masking=masking_kind))]) > 0
    assert len(chosen) == NUM_TOKENS
    assert sigmas(chosen.sum(), NUM_TOKENS, rate) < 3
    if masking_kind == "token":  # everywhere alike, also at the ends
        ends = chosen.reshape(200, -1)[:, [0, -1]]
        assert sigmas(ends.sum(), ends.size, rate) < 3


@pytest.mark.parametrize("masking_kind", MASKINGS)
def test_chosen_tokens_are_masked_replaced_and_kept_as_80_10_10(masking_kind):
    parts = list(masked(MaskedLM(masking=masking_kind)))
    tokens, hidden, chosen = (np.concatenate([row[i] for row in parts]) for i in range(3))
    assert (tokens == hidden)[chosen == 0].all()
    is_chosen = chosen > 0
    # The tokens of a span share their fate, so that there are fewer independent draws.
    draws = sum(len(np.unique(row[2])) - 1 for row in parts) if masking_kind == "span" else is_chosen.sum()
    for hits, rate in (
        ((hidden == MASK)[is_chosen], 0.8),
        ((hidden == tokens)[is_chosen], 0.1 + 0.1 / 256),
        (((hidden != MASK) & (hidden != tokens))[is_chosen], 0.1 * 255 / 256),
    ):
        assert sigmas(hits.mean() * draws, draws, rate) < 4


@pytest.mark.parametrize("masking_kind", ["whole_word", "span", "ngram"])
def test_words_are_chosen_whole(masking_kind):
    for _, _, chosen, word_starts in masked(MaskedLM(masking=masking_kind), num_rows=50):
        word = np.cumsum(word_starts)
        for number in np.unique(word):
            assert len(set((chosen[word == number]).tolist())) == 1
        lengths = [len(np.unique(word[chosen == group])) for group in np.unique(chosen[chosen > 0])]
        assert max(lengths) <= {"whole_word": 1, "span": 10, "ngram": 3}[masking_kind]


def test_span_lengths_are_those_of_the_papers():
    spans = masking._span_lengths(MaskedLM(masking="span"), 50_000, generator())
    assert spans.mean() == pytest.approx(3.8, abs=0.05)  # SpanBERT, section 3.1
    ngrams = Counter(masking._span_lengths(MaskedLM(masking="ngram"), 50_000, generator()).tolist())
    for n in (1, 2, 3):  # ALBERT: 6/11, 3/11, 2/11
        assert ngrams[n] / 50_000 == pytest.approx(6 / 11 / n, abs=0.01)


def test_special_tokens_are_never_chosen_and_the_last_resort_is_a_part_of_a_word():
    candidates = np.array([False, *[True] * 40, False, *[True] * 40, False])
    one_word = np.zeros(83, bool)
    for seed in range(50):
        for kind in MASKINGS:
            chosen = masking.choose_tokens(candidates, one_word, MaskedLM(masking=kind), generator(seed)) > 0
            assert not chosen[~candidates].any()
            assert chosen.sum() == 12
    nothing = masking.choose_tokens(np.zeros(3, bool), one_word[:3], MaskedLM(), generator())
    assert not nothing.any()


def test_chinese_words_are_chosen_whole():
    pytest.importorskip("rjieba", reason="segmenting Chinese needs the chinese extra")
    text = "我来到北京清华大学" * 6
    tokenizer = objectives.objective_tokenizer(CharacterTokenizer("".join(sorted(set(text)))), MaskedLM())
    maker = BatchMaker(MaskedLM(masking="chinese_whole_word", rate=0.4), tokenizer, LENGTH, False, 0, "encoder")
    starts = maker._word_starts(tokenizer.encode(text))
    assert starts[:9].tolist() == [True, True, False, True, False, True, False, False, False]
    chosen = masking.choose_tokens(np.ones(54, bool), starts, maker.objective, generator()) > 0
    assert chosen.any() and all(len(set(word.tolist())) == 1 for word in np.split(chosen, np.flatnonzero(starts)[1:]))


def test_electra_sees_the_mask_or_the_token_itself():
    rows = list(masked(ReplacedTokens()))
    tokens, hidden, chosen = (np.concatenate([row[i] for row in rows]) for i in range(3))
    hidden, tokens = hidden[chosen > 0], tokens[chosen > 0]
    assert ((hidden == MASK) | (hidden == tokens)).all()
    assert sigmas((hidden == MASK).sum(), len(hidden), 0.85) < 3


@pytest.mark.parametrize("attend_across_documents", [False, True])
def test_rows_of_an_encoder(corpus, attend_across_documents):
    for row in rows(take(training(corpus, MaskedLM(), attend_across_documents=attend_across_documents), 5)):
        used = np.flatnonzero(row["segment_ids"])
        tokens, segments = row["targets"][used], row["segment_ids"][used]
        assert (tokens[0], tokens[-1]) == (BOS, EOS) and (tokens[1:-1] != BOS).all()
        assert (row["weights"][np.isin(row["targets"], [PAD, BOS, EOS])] == 0).all()
        assert (row["inputs"] == row["targets"])[row["weights"] == 0].all()
        if attend_across_documents:
            assert (segments == 1).all() and (row["positions"][used] == np.arange(len(used))).all()
        else:
            assert (np.diff(segments)[tokens[:-1] == EOS] == 1).all() and np.diff(segments).sum() == segments[-1] - 1
            for segment in np.unique(segments):
                assert (row["positions"][used][segments == segment] == np.arange((segments == segment).sum())).all()


def test_static_masks_come_again_with_their_period(corpus):
    objective, seen = MaskedLM(duplicates=3), {}
    maker, *_ = training(corpus, objective)._source.make.args
    windows = TrainWindows(corpus.train, length=maker.text_length, seed=5, duplicates=3)
    epochs = [maker.batch(windows, epoch * windows.num_windows, windows.num_windows) for epoch in range(7)]
    assert len({batch["targets"].tobytes() for batch in epochs}) == 7  # the windows come in another order
    for epoch, batch in enumerate(epochs):
        for text, weights in zip(batch["targets"], batch["weights"], strict=True):
            seen.setdefault(text.tobytes(), []).append((epoch, weights.tobytes()))
    assert len(seen) == windows.num_windows
    for masks in seen.values():
        assert [epoch for epoch, _ in masks] == list(range(7))
        assert all((masks[i][1] == masks[j][1]) == ((i - j) % 3 == 0) for i in range(7) for j in range(i))


# Pairs


def documents_of(cache):
    return [bytes((cache.document(i) - 4).astype(np.uint8)) for i in range(cache.num_documents)]


def pairs(corpus, objective, count=60, **options):
    """Yields (A, B, label, weight) as bytes from training rows, checking their layout."""
    for row in rows(take(training(corpus, objective, **options), count)):
        tokens = row["targets"][row["segment_ids"] > 0]
        ends = np.flatnonzero(tokens == EOS)
        assert tokens[0] == BOS and len(ends) == 2 and ends[-1] == len(tokens) - 1
        expected = np.zeros(LENGTH, np.int32)
        expected[ends[0] + 1 : ends[1] + 1] = 1
        assert (row["sentence_ids"] == expected).all()
        first, second = tokens[1 : ends[0]], tokens[ends[0] + 1 : -1]
        text = [bytes((part - 4).astype(np.uint8)) for part in (first, second)]
        yield *text, int(row["sentence_targets"]), float(row["sentence_weights"])


def test_next_sentence_labels_are_balanced_and_right(corpus):
    documents, labels = documents_of(corpus.train), []
    for first, second, label, weight in pairs(corpus, MaskedLM(sentence_pairs="next_sentence")):
        assert weight == 1
        if label == 0:
            assert any(first + second in document for document in documents)
        else:
            assert any(second in document for document in documents)
            of_first = {i for i, document in enumerate(documents) if first in document}
            of_second = {i for i, document in enumerate(documents) if second in document}
            assert len(of_first) > 1 or of_first != of_second
        labels.append(label)
    assert sigmas(sum(labels), len(labels), 0.5) < 3


def test_swapped_sentences_are_the_text_when_swapped_back(corpus):
    documents, labels = documents_of(corpus.train), []
    for first, second, label, weight in pairs(corpus, MaskedLM(sentence_pairs="sentence_order")):
        text = second + first if label else first + second
        assert weight == 1 and any(text in document for document in documents)
        labels.append(label)
    assert sigmas(sum(labels), len(labels), 0.5) < 3


def test_a_single_document_has_no_other_to_pair_with(tmp_path):
    (tmp_path / "a.txt").write_text("One sentence. Another one. " * 40)
    config = DataConfig(train=str(tmp_path / "a.txt"), tokenizer=Bytes(), cache_dir=str(tmp_path), held_out_fraction=0)
    seen = list(pairs(prepare(config), MaskedLM(sentence_pairs="next_sentence"), count=10))
    assert {(label, weight) for _, _, label, weight in seen} == {(0, 0.0), (0, 1.0)}


# Sequence to sequence


def test_t5_makes_512_and_114_of_568_tokens():
    assert objectives.text_length(SpanCorruption(), 512, "encoder_decoder") == 568
    assert objectives.derived_target_length(SpanCorruption(), 512) == 114
    tokens = np.arange(1000, 1568, dtype=np.int32)
    is_noise = denoising.noise_spans(568, 0.15, 3.0, generator())
    inputs, targets = denoising.corrupt(tokens, is_noise, np.arange(100))
    assert (len(inputs) + 1, len(targets) + 1) == (512, 114)


def test_full_windows_fill_their_rows(corpus):
    for row in rows(take(training(corpus, SpanCorruption(), stack="encoder_decoder"), 3)):
        ends_with_document = 63 - row["encoder_segment_ids"].sum()  # at most one token shorter
        assert ends_with_document in (-1, 0)
    for row in rows(take(training(corpus, SpanCorruption()), 3)):
        assert row["segment_ids"].sum() >= LENGTH - 2


SENTINELS = np.arange(500, 600, dtype=np.int32)


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 200),
    rate=st.floats(0.01, 0.99),
    mean_span=st.floats(1, 70),
    seed=st.integers(0, 2**32),
)
def test_span_corruption_inverts(length, rate, mean_span, seed):
    tokens = generator(seed).integers(4, 260, length).astype(np.int32)
    is_noise = denoising.noise_spans(length, rate, mean_span, generator(seed))
    inputs, targets = denoising.corrupt(tokens, is_noise, SENTINELS)
    assert denoising.uncorrupt(inputs, targets, SENTINELS).tolist() == tokens.tolist()
    expected = denoising.span_lengths(length, rate, mean_span)
    assert (len(inputs) + 1, len(targets) + 1) == (expected if length > 1 else (2, 3))
    num_noise, num_spans = denoising.span_counts(length, rate, mean_span)
    assert is_noise.sum() == num_noise and np.isin(inputs, SENTINELS).sum() == num_spans


@settings(max_examples=100, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=40))
def test_every_mask_inverts_and_spans_are_named_in_order(flags):
    tokens, is_noise = np.arange(len(flags), dtype=np.int32), np.array(flags)
    inputs, targets = denoising.corrupt(tokens, is_noise, SENTINELS)
    assert denoising.uncorrupt(inputs, targets, SENTINELS).tolist() == tokens.tolist()
    used = targets[targets >= 500].tolist()
    assert used == SENTINELS[: len(used)].tolist() == inputs[inputs >= 500].tolist()


def test_what_was_not_corrupted_together_is_not_put_together():
    tokens = np.arange(10, 20, dtype=np.int32)
    inputs, targets = denoising.corrupt(tokens, np.arange(10) % 4 == 1, SENTINELS)
    assert inputs.tolist() == [10, 500, 12, 13, 14, 501, 16, 17, 18, 502]
    assert targets.tolist() == [500, 11, 501, 15, 502, 19]
    for wrong in (targets[1:], targets[:-2], targets[::-1]):
        with pytest.raises(DataError, match="the sentinels of the targets are not those of the inputs"):
            denoising.uncorrupt(inputs, wrong, SENTINELS)


def test_the_share_of_corrupted_tokens_is_the_rate():
    masks = np.concatenate([denoising.noise_spans(500, 0.15, 3.0, generator(seed)) for seed in range(200)])
    assert sigmas(masks.sum(), NUM_TOKENS, 0.15) < 3
    assert masks.sum() / (np.diff(masks.astype(int)) == 1).sum() == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("sequential_share", [1 / 7, 0.5])
def test_ul2_mixes_its_modes_as_published(sequential_share):
    drawn = [denoising.ul2_spans(512, 512, sequential_share, generator(seed)) for seed in range(2100)]
    modes = Counter(mode for mode, _ in drawn)
    shares = {"[S]": sequential_share, "[R]": (1 - sequential_share) / 3, "[X]": 2 * (1 - sequential_share) / 3}
    for mode, share in shares.items():
        assert sigmas(modes[mode], 2100, share) < 3.5
    for mode, is_noise in drawn:
        rate, starts = is_noise.mean(), np.flatnonzero(np.diff(is_noise.astype(int), prepend=0) == 1)
        if mode == "[S]":
            assert len(starts) == 1 and is_noise[-1] and 0 < rate <= 0.5
        elif mode == "[R]":
            assert rate == pytest.approx(0.15, abs=0.001) and is_noise.sum() / len(starts) < 9
        else:
            assert rate > 0.4 or is_noise.sum() / len(starts) > 30
    assert np.mean([is_noise.mean() for mode, is_noise in drawn if mode == "[S]"]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("stack", ["encoder_decoder", "decoder"])
def test_ul2_examples_begin_with_their_mode_and_invert(corpus, stack):
    tokenizer = objectives.objective_tokenizer(corpus.tokenizer, UL2(), LENGTH)
    sentinels, modes = np.array(tokenizer.sentinel_ids), set(tokenizer.named.values())
    assert len(modes) == 3
    seen, documents = set(), b"\0".join(documents_of(corpus.train))
    for row in rows(take(training(corpus, UL2(), stack=stack), 10)):
        inputs = (
            row["encoder_inputs"][row["encoder_segment_ids"] > 0]
            if stack != "decoder"
            else row["inputs"][row["prefix"]]
        )
        targets = (
            row["decoder_targets"][row["decoder_weights"] > 0]
            if stack != "decoder"
            else row["targets"][row["weights"] > 0]
        )
        seen.add(int(inputs[0]))
        assert inputs[-1] == targets[-1] == EOS
        text = denoising.uncorrupt(inputs[1:-1], targets[:-1], sentinels)
        for part in np.split(text, np.flatnonzero(text == EOS)):
            assert bytes((part[part != EOS] - 4).astype(np.uint8)) in documents
    assert seen == modes


def sentences_of(tokens, segment_ids=None):
    """Sentences of a text in which 9 is the full stop and 8 a quote."""
    ids = np.arange(300)
    tokens = np.array(tokens, np.int32)
    segment_ids = np.ones(len(tokens), np.int32) if segment_ids is None else np.array(segment_ids, np.int32)
    return split_sentences(tokens, segment_ids, SentenceMarks(ids == 9, (ids != 9) & (ids != 8)), EOS)


def as_lists(sentences):
    return [part.tolist() for part in np.split(sentences.tokens, sentences.starts[1:])]


def test_sentences_end_after_full_stops_and_before_the_end_of_a_document():
    parts = sentences_of([5, 6, 9, 9, 7, EOS, 5, 9, EOS, 10], [1, 1, 1, 1, 1, 1, 2, 2, 2, 3])
    assert as_lists(parts) == [[5, 6, 9, 9], [7], [EOS], [5, 9], [EOS], [10]]
    assert parts.segments.tolist() == [1, 1, 1, 2, 2, 3]
    assert parts.is_text.tolist() == [True, True, False, True, False, True]
    # No sentence is without words, at the start, after a full stop and a quote, or at the end.
    assert as_lists(sentences_of([8, 9, 5, 9, 8, 9, 8, 6, 9, 8, 9])) == [[8, 9, 5, 9, 8, 9], [8, 6, 9, 8, 9]]
    marks = SentenceMarks.of(ByteTokenizer())
    assert bytes((np.flatnonzero(marks.ends) - 4).astype(np.uint8)) == b"\n!.?"
    alphabet = bytes((np.flatnonzero(marks.words[4:])).astype(np.uint8))
    assert alphabet == bytes(c for c in range(256) if chr(c).isalnum() and c < 128 or c >= 128)
    assert SentenceMarks.of(CharacterTokenizer(" .a。京")).ends[4:].tolist() == [False, True, False, True, False]


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(5, 10), min_size=1, max_size=12), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_shuffling_stays_within_documents(documents, seed):
    tokens = [token for document in documents for token in (*document, EOS)]
    segment_ids = [i + 1 for i, document in enumerate(documents) for _ in (*document, EOS)]
    before = sentences_of(tokens, segment_ids)
    shuffled = permute(before, generator(seed)).tolist()
    for document in documents:
        part, shuffled = shuffled[: len(document) + 1], shuffled[len(document) + 1 :]
        assert part[-1] == EOS
        assert Counter(part[:-1]) == Counter(document)


def test_shuffling_keeps_sentences_whole():
    tokens = [10, 9, 11, 12, 9, 13, 14, 15, 9, EOS]
    orders = set()
    for seed in range(60):
        shuffled = permute(sentences_of(tokens), generator(seed)).tolist()
        sentences = as_lists(sentences_of(shuffled))
        assert Counter(map(tuple, sentences)) == Counter([(10, 9), (11, 12, 9), (13, 14, 15, 9), (EOS,)])
        assert sentences[-1] == [EOS]
        orders.add(tuple(shuffled))
    assert len(orders) == 6


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 200), rate=st.floats(0.01, 0.99), mean_span=st.floats(0.05, 20), seed=st.integers(0, 2**32)
)
def test_infilling_puts_one_mask_for_each_span(length, rate, mean_span, seed):
    tokens = np.arange(1000, 1000 + length, dtype=np.int32)
    noisy = denoising.infill(tokens, rate, mean_span, MASK, generator(seed))
    kept = noisy[noisy != MASK]
    assert len(noisy) <= length
    assert length - len(kept) == round(rate * length)
    assert (np.diff(kept) > 0).all() and np.isin(kept, tokens).all()


def test_infilling_spans_are_poisson_with_empty_ones():
    tokens = np.arange(NUM_TOKENS, dtype=np.int32) + 1000
    noisy = denoising.infill(tokens, 0.3, 3.0, MASK, generator())
    num_masks = (noisy == MASK).sum()
    assert num_masks == pytest.approx(0.3 * NUM_TOKENS / 3.0, rel=0.03)
    before = np.where(noisy == MASK, 0, noisy)
    alone = np.flatnonzero(noisy[1:-1] == MASK) + 1
    alone = alone[(before[alone - 1] > 0) & (before[alone + 1] > 0)]
    lengths = Counter((before[alone + 1] - before[alone - 1] - 1).tolist())
    for size in range(6):
        poisson = np.exp(-3.0) * 3.0**size / np.prod(np.arange(1, size + 1))
        assert lengths[size] / len(alone) == pytest.approx(poisson, abs=0.015)


def test_bart_reads_noise_and_writes_the_text(corpus):
    documents = b"\0".join(documents_of(corpus.train))
    for row in rows(take(training(corpus, TextInfilling(), stack="encoder_decoder"), 5)):
        targets = row["decoder_targets"][row["decoder_weights"] > 0]
        inputs = row["encoder_inputs"][row["encoder_segment_ids"] > 0]
        assert inputs[-1] == targets[-1] == EOS
        for part in np.split(targets, np.flatnonzero(targets == EOS)):
            assert bytes((part[part != EOS] - 4).astype(np.uint8)) in documents
        left = Counter(inputs[inputs != MASK].tolist())
        assert not left - Counter(targets.tolist())
        assert left.total() - 1 == (len(targets) - 1) - round(0.3 * (len(targets) - 1))


def test_pegasus_chooses_the_sentence_most_like_the_rest():
    text = [20, 21, 9, 30, 31, 32, 9, 20, 30, 31, 9, 40, 41, 9]
    parts = sentences_of(text)
    scores = rouge_1(parts)
    # The third shares 20, 30, 31 and a full stop with the other 10: F1 = 2 * 4 / (4 + 10).
    assert scores.tolist() == pytest.approx([2 * 2 / 14, 2 * 3 / 14, 2 * 4 / 14, 2 * 1 / 14])
    exact = GapSentences(noise=0.0, keep_share=0.0)
    inputs, targets = gap_sentences(exact, parts, 100, MASK, generator())
    assert inputs.tolist() == [20, 21, 9, 30, 31, 32, 9, MASK, 40, 41, 9]
    assert targets.tolist() == [20, 30, 31, 9]
    inputs, targets = gap_sentences(exact.model_copy(update={"rate": 0.5}), parts, 100, MASK, generator())
    assert targets.tolist() == [30, 31, 32, 9, 20, 30, 31, 9]
    lead = GapSentences(selection="lead", rate=0.5, keep_share=1.0)
    assert gap_sentences(lead, parts, 100, MASK, generator())[0].tolist() == text
    assert gap_sentences(lead, parts, 100, MASK, generator())[1].tolist() == text[:7]
    assert gap_sentences(lead, parts, 2, MASK, generator())[1].tolist() == text[:2]


def test_sentences_are_scored_within_their_document():
    parts = sentences_of([20, 9, 21, 9, EOS, 20, 9, 20, 9], [1, 1, 1, 1, 1, 2, 2, 2, 2])
    assert rouge_1(parts).tolist() == [0.5, 0.5, 0.0, 1.0, 1.0]


# Stacks


@each(WITH_TARGETS)
def test_the_decoder_sees_its_target_shifted(corpus, objective, stack):
    for row in rows(take(training(corpus, objective, stack=stack, decoder_start_id=77), 3)):
        if stack == "encoder_decoder":
            inputs, targets = (row[f"decoder_{name}"][row["decoder_weights"] > 0] for name in ("inputs", "targets"))
        else:
            inputs, targets = (row[name][row["weights"] > 0] for name in ("inputs", "targets"))
            real, prefix = row["segment_ids"] > 0, row["prefix"]
            assert ((row["weights"] > 0) == (real & ~prefix)).all()
            assert (np.diff(prefix.astype(int)) <= 0).all() and prefix[0] and row["inputs"][prefix][-1] == EOS
        assert inputs[0] == 77 and (inputs[1:] == targets[:-1]).all() and targets[-1] == EOS


@pytest.mark.parametrize("attend_across_documents", [False, True])
def test_a_prefix_in_each_document(corpus, attend_across_documents):
    options = {"attend_across_documents": attend_across_documents}
    causal = rows(take(training(corpus, CausalLM(), **options), 40))
    shares = []
    for row, plain in zip(rows(take(training(corpus, PrefixLM(), **options), 40)), causal, strict=True):
        assert (row["inputs"] == plain["inputs"]).all() and (row["targets"] == plain["targets"]).all()
        segments = row.get("segment_ids", np.ones(LENGTH, np.int32))
        for segment in np.unique(segments[segments > 0]):
            prefix, weights = row["prefix"][segments == segment], row["weights"][segments == segment]
            count = prefix.sum()
            assert 1 <= count <= len(prefix) and prefix[:count].all()
            # Its last token is where the first one after it is predicted.
            assert weights.tolist() == [0.0] * (count - 1) + [1.0] * (len(prefix) - count + 1)
            shares.append((count - 0.5) / len(prefix))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.std(shares) == pytest.approx(12**-0.5, abs=0.04)


def test_target_length_can_be_chosen(corpus):
    for objective in (PrefixLM(), SpanCorruption(), UL2(), TextInfilling(), GapSentences()):
        batches = take(training(corpus, objective, stack="encoder_decoder", target_length=16), 3)
        for batch in batches:
            assert batch["decoder_targets"].shape == (8, 16)
            last = batch["decoder_weights"].sum(1).astype(int) - 1
            assert (batch["decoder_targets"][np.arange(8), last] == EOS).all()


# Tokenizers and mistakes


def test_objectives_get_the_special_tokens_they_need(corpus):
    for objective, _ in WAYS:
        tokenizer = objectives.objective_tokenizer(corpus.tokenizer, objective)
        assert objectives.objective_tokenizer(tokenizer, objective) is tokenizer
        needs_mask = objective.kind in ("masked_lm", "replaced_tokens", "text_infilling", "gap_sentences")
        assert (tokenizer.mask_id is not None) == needs_mask
        assert len(tokenizer.sentinel_ids) == (100 if objective.kind in ("span_corruption", "ul2") else 0)
    assert len(objectives.objective_tokenizer(corpus.tokenizer, SpanCorruption(), 4096).sentinel_ids) == 227
    assert set(objectives.objective_tokenizer(corpus.tokenizer, UL2()).named) == {"[R]", "[S]", "[X]"}


def test_mistakes_are_told(corpus, tmp_path):
    with pytest.raises(DataError, match="masked_lm needs special tokens that the tokenizer lacks"):
        training(corpus, MaskedLM(), tokenizer=ByteTokenizer())
    with pytest.raises(DataError, match="stride is for the objective causal_lm alone, not for masked_lm"):
        eval_batches(corpus.validation, **arguments(corpus, MaskedLM(), stride=8))
    with pytest.raises(DataError, match="length 2 has no room for a single token of text with the objective ul2"):
        training(corpus, UL2(), length=2)
    with pytest.raises(ValidationError, match=r"mask_share \+ random_share must be at most 1"):
        MaskedLM(mask_share=0.95)
    with pytest.raises(ValidationError, match="min_rate must be at most the rate 0.3"):
        GapSentences(min_rate=0.4)


def test_objectives_survive_json():
    adapter = TypeAdapter(Objective)
    for objective, _ in WAYS:
        assert adapter.validate_json(objective.model_dump_json()) == objective


def test_tiny_texts_and_rows_break_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("a\nbc\n.\n")
    source = Files(path=str(tmp_path / "a.txt"), document="line")
    config = DataConfig(train=(source,), tokenizer=Bytes(), cache_dir=str(tmp_path), held_out_fraction=0)
    corpus = prepare(config)
    for objective, stack in WAYS:
        tokenizer = objectives.objective_tokenizer(corpus.tokenizer, objective)
        for length in (7, 8, 64):
            maker = BatchMaker(objective, tokenizer, length, False, 0, stack)
            for windows in (
                TrainWindows(corpus.train, length=maker.text_length, seed=0),
                EvalWindows(corpus.train, length=maker.text_length),
            ):
                for first in range(0, 20, 5):
                    assert maker.batch(windows, first, 5)
