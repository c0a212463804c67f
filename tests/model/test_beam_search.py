"""Laws of beam search: against a search in NumPy without cache or batches, against all texts there are, and alone."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import decoding, tree
from model.beam_search import BeamSearch, beam_search, hypothesis_score
from model.config import TransformerConfig
from model.decoding import UNCONSTRAINED, Constraints, Sampling
from model.taps import capture
from model.transformer import initialize, transformer
from train import sharding
from train.config import Mesh

VOCAB, EOS, LENGTH = 12, 3, 24
SIZES = dict(
    vocab_size=VOCAB, num_layers=2, embed_dim=16, num_heads=2, max_length=LENGTH, init_stddev=0.4, head_bias=True
)
KINDS = {
    "decoder": dict(positions="rotary"),
    "prefix": dict(positions="t5_relative"),
    "encoder_decoder": dict(stack="encoder_decoder", positions="t5_relative", norm="rms", num_kv_heads=1),
}
PROMPTS = [[4], [5, 6, 7, 4, 8], [9, 2, 9]]
SOURCES = [[5, 6, 7, 8, 9, 3], [8, 2, 3], [4]]
LIMITS = [8, 6, 7]
EVERYTHING = np.ones(VOCAB, bool)


@functools.cache
def build(kind: str, **changes):
    model = transformer(TransformerConfig(**SIZES | KINDS[kind] | changes))
    params = tree.unbox(jax.jit(lambda key: initialize(model, key))(jax.random.key(1)))
    params["head"]["bias"] = params["head"]["bias"].at[EOS].set(-2.0)  # so that texts end at all lengths
    return model, params


def padded(texts, width=None):
    lengths = np.array([len(text) for text in texts], np.int32)
    tokens = np.zeros((len(texts), width or lengths.max()), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens, lengths


def search(kind, beams, constraints=UNCONSTRAINED, rows=(0, 1, 2), *, params=None, allowed=EVERYTHING, limits=LIMITS):
    """The texts of each row, best first, each (score, tokens)."""
    model, own = build(kind)
    tokens, lengths = padded([PROMPTS[row] for row in rows], 5)
    named = dict(is_prefix=kind == "prefix")
    if kind == "encoder_decoder":
        source, source_lengths = padded([SOURCES[row] for row in rows], 6)
        named |= dict(source=source, source_lengths=source_lengths)
    limits = np.array([limits[row] for row in rows], np.int32)
    options = dict(beams=beams, constraints=constraints, max_new_tokens=8, eos_id=EOS)
    found = beam_search(model, own if params is None else params, tokens, lengths, limits, allowed, **named, **options)
    both = zip(np.asarray(found.tokens), np.asarray(found.scores), strict=True)
    return [[(float(s), t[t >= 0].tolist()) for t, s in zip(*row, strict=True) if s > -np.inf] for row in both]


# The reference -------------------------------------------------------------------------------------------------


@functools.cache
def forward(kind: str):
    """Tokens [64, 13], prompt lengths and sources → log P of every next token, and attention to the source."""
    model, params = build(kind)

    @jax.jit
    def forward(tokens, prompt_lengths, sources, source_lengths):
        if kind == "encoder_decoder":
            segments = (jnp.arange(sources.shape[1]) < source_lengths[:, None]).astype(jnp.int32)
            address = f"decoder/layers/{model.config.num_layers - 1}/cross_attention/probabilities"
            with capture(address) as taps:
                logits = model.apply({"params": params}, sources, tokens, encoder_segment_ids=segments)
            attention = taps[address].mean(axis=1)
        else:
            prefix = jnp.arange(tokens.shape[1]) < prompt_lengths[:, None]
            logits = model.apply({"params": params}, tokens, prefix=prefix if kind == "prefix" else None)
            attention = jnp.ones((*tokens.shape, sources.shape[1]))
        return jax.nn.log_softmax(logits), attention

    return forward


def teacher(kind: str, row: int, texts):
    """For each text log P of every token after its prompt, after its first token, …, and attention to the source."""
    prompt, source = PROMPTS[row], SOURCES[row]
    tokens, _ = padded([prompt + text for text in texts] + [[0]] * (64 - len(texts)), 13)
    sources, source_lengths = padded([source] * 64, 6)
    log_probabilities, attention = forward(kind)(tokens, np.full(64, len(prompt)), sources, source_lengths)
    after = np.s_[: len(texts), len(prompt) - 1 :]
    return np.asarray(log_probabilities)[after], np.asarray(attention)[after][..., : len(source)]


def scored(kind, row, texts, beams) -> list[float]:
    """Each text's score, by its definition."""
    log_probabilities, attention = teacher(kind, row, texts)
    scores = []
    for text, steps, weights in zip(texts, log_probabilities, attention, strict=True):
        length = len(text)
        total = sum(steps[i, token] for i, token in enumerate(text))
        base = (5 + length) / 6 if beams.length_normalization == "gnmt" else length
        covered = np.minimum(weights[:length].sum(axis=0), 1)
        scores.append(total / base**beams.length_penalty + beams.coverage_penalty * np.log(covered).sum())
    return scores


def permitted(text, prompt, constraints, allowed):
    if constraints.first_token is not None and not text:
        return np.arange(VOCAB) == constraints.first_token
    may = allowed.copy()
    may[EOS] &= len(text) >= constraints.min_new_tokens
    n, whole = constraints.no_repeat_ngram, prompt + text
    if n:
        known = {tuple(whole[i : i + n]) for i in range(len(whole) - n + 1)}
        may &= [tuple([*whole, token][-n:]) not in known for token in range(VOCAB)]
    return may


def reference(kind, row, beams, constraints=UNCONSTRAINED, allowed=EVERYTHING):
    """Diverse beam search of one prompt, hypothesis by hypothesis."""
    size, limit = beams.beam_size // beams.num_groups, LIMITS[row]
    live, pools = [[(0.0, [])] for _ in range(beams.num_groups)], [[] for _ in range(beams.num_groups)]
    while any(live):
        counts = np.zeros(VOCAB)
        for group in range(beams.num_groups):
            if not live[group]:
                continue
            steps, _ = teacher(kind, row, [text for _, text in live[group]])
            found = []
            for i, (total, text) in enumerate(live[group]):
                may = permitted(text, PROMPTS[row], constraints, allowed)
                for token in np.flatnonzero(may):
                    new = total + steps[i, len(text), token]
                    found.append((-(new - beams.diversity_penalty * counts[token]), i, token, new))
            found = [(new, [*live[group][i][1], int(token)]) for _, i, token, new in sorted(found)[: 2 * size]]
            for _, text in found[:size]:
                counts[text[-1]] += 1
                if text[-1] == EOS or len(text) == limit:
                    pools[group].append((scored(kind, row, [text], beams)[0], text))
            pools[group] = sorted(pools[group], key=lambda x: -x[0])[:size]
            live[group] = [(new, text) for new, text in found if text[-1] != EOS][:size]
            full = len(pools[group]) == size
            if live[group] and len(live[group][0][1]) == limit or full and beams.early_stopping == "first":
                live[group] = []
    return sorted(itertools.chain(*pools), key=lambda x: -x[0])[: beams.n_best]


def check_equal(found, expected):
    assert [text for _, text in found] == [text for _, text in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=1e-5, atol=1e-5)


CASES = {
    "plain": ("decoder", BeamSearch(4, n_best=4)),
    "diverse": ("decoder", BeamSearch(6, 0.6, num_groups=3, diversity_penalty=1.5, n_best=6)),
    "gnmt": ("prefix", BeamSearch(3, length_penalty=0.8, n_best=3)),
    "power": ("encoder_decoder", BeamSearch(4, 1.0, "power", early_stopping="first", n_best=4)),
    "coverage": ("encoder_decoder", BeamSearch(4, 0.6, coverage_penalty=0.4, n_best=4)),
    "diverse first": (
        "encoder_decoder",
        BeamSearch(4, num_groups=2, diversity_penalty=1.0, early_stopping="first", n_best=4),
    ),
}
CONSTRAINTS = Constraints(no_repeat_ngram=2, min_new_tokens=4, first_token=1)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_and_the_definition_of_its_scores(case):
    kind, beams = CASES[case]
    for row, found in enumerate(search(kind, beams)):
        check_equal(found, reference(kind, row, beams))
        expected = scored(kind, row, [text for _, text in found], beams)
        np.testing.assert_allclose([score for score, _ in found], expected, rtol=1e-5, atol=1e-5)


def test_constraints_hold_and_the_reference_agrees():
    kind = "decoder"
    beams, allowed = BeamSearch(3, n_best=3), np.arange(VOCAB) != 1
    for row, found in enumerate(search(kind, beams, CONSTRAINTS, allowed=allowed)):
        check_equal(found, reference(kind, row, beams, CONSTRAINTS, allowed))
        for _, text in found:
            whole = PROMPTS[row] + text
            pairs = list(itertools.pairwise(whole))
            assert text[0] == 1 and EOS not in text[:4] and 1 not in text[1:]
            assert all(pairs.index(pair) == i for i, pair in enumerate(pairs) if i >= len(PROMPTS[row]) - 1)


@pytest.mark.parametrize(("kind", "constraints"), [("prefix", UNCONSTRAINED), ("encoder_decoder", CONSTRAINTS)])
def test_one_beam_is_greedy(kind, constraints):
    model, params = build(kind)
    tokens, lengths = padded(PROMPTS)
    source, source_lengths = padded(SOURCES)
    state = decoding.start(model.config, jax.random.split(jax.random.key(0), 3), 13, source_length=6)
    named = dict(source=source, source_lengths=source_lengths, is_prefix=kind == "prefix")
    state = decoding.read(model, params, state, tokens, lengths, **named)
    state = state.replace(limits=jnp.asarray(lengths + np.array(LIMITS)))
    options = dict(num_steps=8, eos_id=EOS, sampling=Sampling(temperature=0), constraints=constraints)
    state, written = decoding.decode(model, params, state, EVERYTHING, **options)
    found = search(kind, BeamSearch(1), constraints)
    assert [text for [(_, text)] in found] == [row[row >= 0].tolist() for row in np.asarray(written)]
    np.testing.assert_allclose([score for [(score, _)] in found], state.log_probability, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("alpha", "early_stopping"), [(0.0, "never"), (0.6, "bound")], ids=["log P", "normalized"])
def test_a_beam_for_all_texts_finds_them_all_in_order(alpha, early_stopping):
    """Four tokens, one of them the end, in up to four places: 40 texts that end and 81 that do not."""
    model, params = build("decoder", vocab_size=4)
    texts = [text for n in range(1, 5) for text in itertools.product(range(4), repeat=n)]
    texts = [list(text) for text in texts if EOS not in text[:-1] and (text[-1] == EOS or len(text) == 4)]
    read, _ = padded([[0] + text for text in texts])
    steps = jax.jit(lambda read: jax.nn.log_softmax(model.apply({"params": params}, read)))(read)
    beams = BeamSearch(128, alpha, n_best=128, early_stopping=early_stopping)
    totals = [sum(float(row[i, token]) for i, token in enumerate(text)) for row, text in zip(steps, texts, strict=True)]
    expected = {tuple(t): s / ((5 + len(t)) / 6) ** alpha for t, s in zip(texts, totals, strict=True)}
    one = np.ones(1, np.int32)
    options = dict(beams=beams, max_new_tokens=4, eos_id=EOS)
    found = beam_search(model, params, np.zeros((1, 1), np.int32), one, 4 * one, np.ones(4, bool), **options)
    tokens, scores = np.asarray(found.tokens[0]), np.asarray(found.scores[0])
    assert (scores[:-1] >= scores[1:]).all() and (scores[121:] == -np.inf).all() and (tokens[121:] == -1).all()
    best = {tuple(row[row >= 0].tolist()): score for row, score in zip(tokens[:121], scores, strict=False)}
    assert best.keys() == expected.keys()
    np.testing.assert_allclose([best[text] for text in expected], list(expected.values()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["plain", "coverage"])
def test_company_changes_nothing(case):
    kind, beams = CASES[case]
    for row, expected in enumerate(search(kind, beams)):
        [alone] = search(kind, beams, rows=[row])
        check_equal(alone, expected)


def test_stopping_at_the_bound_changes_no_result():
    """As the reference, which never stops, says too."""
    kind, beams = CASES["diverse"]
    never = search(kind, dataclasses.replace(beams, early_stopping="never"))
    for found, expected in zip(search(kind, beams), never, strict=True):
        check_equal(found, expected)


def test_groups_that_must_differ_do():
    for texts in search("decoder", BeamSearch(4, num_groups=4, diversity_penalty=50.0, n_best=4)):
        assert len({text[0] for _, text in texts}) == 4


def test_coverage_is_the_softmax_of_queries_and_keys():
    """The last layer's weights, from its projections, by teacher forcing."""
    model, params = build("encoder_decoder")

    @jax.jit
    def projected(read, source):
        _, seen = model.apply(
            {"params": params}, source, read, capture_intermediates=lambda module, _: module.name in ("query", "key")
        )
        seen = seen["intermediates"]["decoder"]["layers"]["cross_attention"]
        return seen["query"]["__call__"][0][-1], seen["key"]["__call__"][0][-1]

    beams = CASES["coverage"][1]
    for score, text in search("encoder_decoder", beams)[0]:
        read, _ = padded([PROMPTS[0] + text], 13)
        query, key = (np.asarray(x)[0] for x in projected(read, np.array(SOURCES[:1])))
        logits = np.einsum("thd,sd->hts", query[: len(text)], key[:, 0]) / np.sqrt(key.shape[-1])
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        covered = np.minimum(weights.mean(axis=0).sum(axis=0), 1)
        plain = scored("encoder_decoder", 0, [text], dataclasses.replace(beams, coverage_penalty=0))[0]
        np.testing.assert_allclose(score, plain + beams.coverage_penalty * np.log(covered).sum(), rtol=1e-5)


def test_the_score_is_that_of_gnmt():
    coverage = jnp.array([[0.5, 2.0, 1.0], [1.0, 1.0, 0.0]])
    beams = BeamSearch(2, length_penalty=0.2, coverage_penalty=0.3)
    scores = hypothesis_score(jnp.array([-6.0, -2.0]), jnp.array([7, 1]), beams, coverage)
    np.testing.assert_allclose(scores[0], -6 / 2**0.2 + 0.3 * np.log(0.5), rtol=1e-6)
    assert np.isfinite(scores[1]) and scores[1] < -20  # attention that underflowed
    power = BeamSearch(2, length_penalty=0.5, length_normalization="power")
    assert hypothesis_score(jnp.array(-6.0), 4, power) == -3


def test_where_nothing_may_follow_there_is_no_text():
    few = np.arange(VOCAB) == 5  # 5 5 5 would repeat a pair, and the end is not allowed
    assert search("decoder", BeamSearch(2), Constraints(no_repeat_ngram=2), allowed=few) == [[], [], []]


def test_damaged_logits_show_in_the_score_of_their_row():
    model, params = build("decoder")
    [table] = params["token_embedding"].values()
    damaged = params | dict(token_embedding=dict.fromkeys(params["token_embedding"], table.at[6].set(jnp.nan)))
    tokens, lengths = padded([[4], [6]])
    options = dict(beams=BeamSearch(2), max_new_tokens=2, eos_id=EOS)
    found = beam_search(model, damaged, tokens, lengths, np.array([2, 2]), EVERYTHING, **options)
    assert np.isnan(found.scores).all()


def test_a_mesh_of_eight_devices_finds_the_same():
    model, params = build("encoder_decoder")
    mesh, rules = sharding.make_mesh(Mesh(data=2, fsdp=2, tensor=2)), Mesh().rules
    boxed = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    specs, _ = sharding.parameter_specs(boxed, mesh, rules)
    places = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, jax.P))
    spread = jax.device_put(params, places)
    beams = BeamSearch(4, 0.6, coverage_penalty=0.4, n_best=4)
    for found, expected in zip(
        search("encoder_decoder", beams, params=spread), search("encoder_decoder", beams), strict=True
    ):
        check_equal(found, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(beam_size=0), "beam_size must be at least 1, not 0"),
        (dict(n_best=5), "n_best=5 is more than beam_size=4"),
        (dict(num_groups=3), "num_groups=3 does not divide beam_size=4"),
        (dict(diversity_penalty=1.0), "needs num_groups of at least 2"),
        (dict(length_penalty=-1.0), "length_penalty must be a finite number of at least 0"),
        (dict(coverage_penalty=float("nan")), "coverage_penalty must be a finite number"),
    ],
)
def test_meaningless_searches_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**wrong)


@pytest.mark.parametrize("wrong", [dict(early_stopping="soon"), dict(length_normalization="none")])
def test_unknown_names_are_refused(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be .*, not {value}"):
        BeamSearch.__post_init__(SimpleNamespace(**vars(BeamSearch()) | wrong))  # as where no types are checked


def test_coverage_needs_an_encoder():
    with pytest.raises(ValueError, match="coverage_penalty needs an encoder–decoder"):
        search("decoder", BeamSearch(4, coverage_penalty=0.1))


@pytest.mark.parity
@pytest.mark.parametrize(("alpha", "early_stopping"), [(0.0, "never"), (1.0, "first"), (1.0, "never")])
def test_equals_hugging_face(alpha, early_stopping, tmp_path):
    """Theirs divides by length ** alpha, with the end counted, and calls our "first" True."""
    pytest.importorskip("torch")
    official = pytest.importorskip("transformers")
    import parity
    import torch

    sizes = dict(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    config = official.T5Config(**sizes, decoder_start_token_id=0, eos_token_id=3, pad_token_id=0)
    pair = parity.make(official.T5ForConditionalGeneration, config, tmp_path, seed=1)
    rng = np.random.default_rng(0)
    source, source_lengths = padded([rng.integers(4, 30, n).tolist() for n in (9, 5, 7)])
    mask = np.arange(9) < source_lengths[:, None]
    expected = pair.official.generate(
        torch.tensor(source), attention_mask=torch.tensor(mask), num_beams=4, num_return_sequences=4, do_sample=False,
        max_new_tokens=10, length_penalty=alpha, early_stopping=early_stopping == "first" or "never",
        no_repeat_ngram_size=2, min_new_tokens=2, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = beam_search(
        transformer(pair.config), pair.params, np.zeros((3, 1), np.int32), np.ones(3, np.int32), np.full(3, 10),
        np.ones(30, bool), source=source, source_lengths=source_lengths, max_new_tokens=10, eos_id=3,
        beams=BeamSearch(4, alpha, "power", early_stopping=early_stopping, n_best=4),
        constraints=Constraints(no_repeat_ngram=2, min_new_tokens=2),
    )  # fmt: skip
    np.testing.assert_allclose(found.scores.ravel(), expected.sequences_scores, rtol=1e-4, atol=1e-4)
    written = np.where(found.tokens < 0, 3, found.tokens).reshape(12, -1)  # they pad with the end
    np.testing.assert_array_equal(written[:, : expected.sequences.shape[1] - 1], expected.sequences[:, 1:])
