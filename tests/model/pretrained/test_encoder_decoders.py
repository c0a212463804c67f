"""T5, mT5, BART, PEGASUS and Marian: our numbers are the official ones, our files the official bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
official = pytest.importorskip("transformers")

import parity  # noqa: E402

from model.pretrained import PretrainedError, check_fits, family_of, fitting_family, read_model, write_model  # noqa: E402

pytestmark = pytest.mark.parity

NUM_DRAWS = 5
T5_FEED_FORWARDS = ("relu", "gated-gelu", "gated-silu", "gated-relu", "gelu")
BART_ACTIVATIONS = ("gelu", "relu", "swish", "gelu_new", "silu")
T5 = {
    "t5": (official.T5Config, official.T5ForConditionalGeneration),
    "mt5": (official.MT5Config, official.MT5ForConditionalGeneration),
}
BART = {
    "bart": (official.BartConfig, official.BartForConditionalGeneration),
    "pegasus": (official.PegasusConfig, official.PegasusForConditionalGeneration),
    "marian": (official.MarianConfig, official.MarianMTModel),
}


def t5_config(rng: np.random.Generator, config_class: type, number: int):
    """Sizes of the T5 kind. Buckets and distances are so small that a short text has them all.

    The official cache has room for as many layers as the encoder has, so the decoder has no more.
    """
    return config_class(
        vocab_size=int(rng.integers(30, 60)),
        d_model=int(rng.choice([16, 24, 32])),
        d_kv=int(rng.choice([4, 6, 8])),
        num_heads=int(rng.choice([1, 2, 3, 4])),
        d_ff=int(rng.choice([20, 32, 48])),
        num_layers=3,
        num_decoder_layers=int(rng.integers(1, 4)),
        relative_attention_num_buckets=int(rng.choice([8, 12, 32])),
        relative_attention_max_distance=int(rng.choice([10, 20, 128])),
        layer_norm_epsilon=float(rng.choice([1e-6, 1e-3])),
        feed_forward_proj=T5_FEED_FORWARDS[number],
        decoder_start_token_id=int(rng.integers(0, 4)),
        tie_word_embeddings=number in (0, 2),
    )


def bart_config(rng: np.random.Generator, config_class: type, number: int, **fields):
    """Sizes of the BART kind."""
    heads, mlp_dim = int(rng.choice([1, 2, 4])), int(rng.choice([20, 32, 48]))
    return config_class(
        vocab_size=int(rng.integers(30, 60)),
        d_model=heads * int(rng.choice([6, 8])),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=mlp_dim,
        decoder_ffn_dim=mlp_dim,
        encoder_layers=int(rng.integers(1, 4)),
        decoder_layers=int(rng.integers(1, 4)),
        max_position_embeddings=int(rng.integers(20, 40)),
        activation_function=BART_ACTIVATIONS[number],
        scale_embedding=number % 2 == 1,
        pad_token_id=int(rng.integers(0, 4)),
        decoder_start_token_id=int(rng.integers(0, 4)),
        **fields,
    )


def make(model_class: type, config, folder) -> parity.Pair:
    """As `parity.make`, with what the official constructors leave out.

    T5 1.1 and mT5 have an output of their own, which only weights tell. An untied BART or PEGASUS keeps a shared
    table that nothing reads; it gets the values of the encoder's, because no place of our tree holds others.
    """
    torch.manual_seed(0)
    model = model_class(config).eval()
    parity.randomize(model, seed=0)
    if config.model_type in T5:
        if not getattr(config, "scale_decoder_outputs", False):
            weight = torch.randn(model.lm_head.weight.shape) * config.d_model**-0.5
            model.lm_head.weight = torch.nn.Parameter(weight)
    elif not config.tie_word_embeddings and hasattr(model.model, "shared"):
        model.model.shared.weight.data = model.model.encoder.embed_tokens.weight.data.clone()
    model.save_pretrained(folder)
    return parity.Pair(model, folder, *read_model(folder))


def check_numbers(pair: parity.Pair, rng: np.random.Generator) -> None:
    parity.check_encoder_decoder(pair, parity.draw(rng, pair), parity.draw(rng, pair, length=7))
    start = np.full((2, 1), pair.config.decoder_start_id)
    assert pair.config.decoder_start_id == pair.official.config.decoder_start_token_id
    parity.check_greedy(pair, parity.Tokens(start, np.ones_like(start, bool)), parity.draw(rng, pair, batch=2))


@pytest.mark.parametrize("number", range(NUM_DRAWS))
@pytest.mark.parametrize("model_type", T5)
def test_t5(model_type, number, tmp_path):
    config_class, model_class = T5[model_type]
    rng = np.random.default_rng(number)
    pair = make(model_class, t5_config(rng, config_class, number), tmp_path / "official")
    check_numbers(pair, rng)
    if number < 2:  # tied and not, gated and not
        parity.check_files(pair, tmp_path)


@pytest.mark.parametrize("number", range(NUM_DRAWS))
@pytest.mark.parametrize("model_type", BART)
def test_bart(model_type, number, tmp_path):
    config_class, model_class = BART[model_type]
    fields = dict(tie_word_embeddings=number != 1)
    if model_type == "marian":
        fields["share_encoder_decoder_embeddings"] = number not in (1, 2)
    rng = np.random.default_rng(number)
    pair = make(model_class, bart_config(rng, config_class, number, **fields), tmp_path / "official")
    check_numbers(pair, rng)
    if number < 2:
        parity.check_files(pair, tmp_path)


def test_t5_buckets_of_long_texts(tmp_path):
    """Distances around the powers of two, where rounding decides on the bucket, and beyond the last one."""
    config = official.T5Config(vocab_size=40, d_model=16, d_kv=4, num_heads=4, d_ff=20, num_layers=1)
    pair = make(official.T5ForConditionalGeneration, config, tmp_path)
    rng = np.random.default_rng(0)
    parity.check_encoder_decoder(pair, parity.draw(rng, pair, length=150), parity.draw(rng, pair, length=140))


@pytest.mark.parametrize("model_type", BART)
def test_a_bare_model_is_the_tied_one_without_output_bias(model_type, tmp_path):
    """Its files go out as they came, and the class with a head that reads them computes what we do."""
    config_class, model_class = BART[model_type]
    config = bart_config(np.random.default_rng(5), config_class, 0)
    bare = getattr(official, model_class.__name__.replace("ForConditionalGeneration", "Model").replace("MT", ""))
    pair = make(bare, config, tmp_path / "official")
    assert not pair.config.head_bias
    parity.check_export(pair, tmp_path)
    pair = replace(pair, official=model_class.from_pretrained(pair.folder).eval())
    rng = np.random.default_rng(0)
    parity.check_encoder_decoder(pair, parity.draw(rng, pair), parity.draw(rng, pair))


# Files as they were written before the tied output and its scale were told apart, and with what else they held.


@pytest.fixture(scope="module")
def t5_1_1(tmp_path_factory) -> parity.Pair:
    config = t5_config(np.random.default_rng(1), official.T5Config, 1)
    return make(official.T5ForConditionalGeneration, config, tmp_path_factory.mktemp("t5_1_1"))


@pytest.fixture(scope="module")
def pegasus(tmp_path_factory) -> parity.Pair:
    config = bart_config(np.random.default_rng(0), official.PegasusConfig, 0)
    return make(official.PegasusForConditionalGeneration, config, tmp_path_factory.mktemp("pegasus"))


def changed(pair: parity.Pair, folder, fields: dict, tensors: dict):
    """A copy of the pair's folder; None takes a field away."""
    fields = json.loads((pair.folder / "config.json").read_text("utf-8")) | fields
    fields = {name: value for name, value in fields.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")
    save_file(load_file(pair.folder / "model.safetensors") | tensors, folder / "model.safetensors")
    return folder


def test_older_t5_files(t5_1_1, tmp_path):
    stored = load_file(t5_1_1.folder / "model.safetensors")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = {f"{stack}.embed_tokens.weight": stored["shared.weight"] for stack in ("encoder", "decoder")}
    older = dict(scale_decoder_outputs=None, tie_word_embeddings=False, n_positions=77)
    config, _ = read_model(changed(t5_1_1, tmp_path, older, copies | {unused: np.zeros((8, 3), np.float32)}))
    assert config == t5_1_1.config.model_copy(update=dict(max_length=77))


@pytest.mark.parametrize("scale_logits", [False, True])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_t5_output_may_be_tied_and_scaled_or_not(tie_embeddings, scale_logits, t5_1_1, tmp_path):
    config = t5_1_1.config.model_copy(update=dict(tie_embeddings=tie_embeddings, scale_logits=scale_logits))
    params = {name: tree for name, tree in t5_1_1.params.items() if name != "head" or not tie_embeddings}
    write_model(tmp_path, config, params, family="t5")
    assert read_model(tmp_path)[0] == config
    opened = official.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert opened.config.scale_decoder_outputs == scale_logits
    assert torch.equal(opened.lm_head.weight, opened.shared.weight) == tie_embeddings


def test_older_bart_files(pegasus, tmp_path):
    """The static tables were not stored then, and the config named each mechanism."""
    older = dict(normalize_before=True, normalize_embedding=False, static_position_embeddings=True)
    folder = changed(pegasus, tmp_path, older | dict(extra_pos_embeddings=1, add_bias_logits=False), {})
    tables = {name for name in load_file(folder / "model.safetensors") if "embed_positions" in name}
    assert len(tables) == 2
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if k not in tables}
    save_file(kept, folder / "model.safetensors")
    assert read_model(folder)[0] == pegasus.config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(decoder_ffn_dim=28), r"encoder_ffn_dim=\d+ beside decoder_ffn_dim=28 is not supported"),
        (dict(decoder_attention_heads=3), r"encoder_attention_heads=\d+ beside decoder_attention_heads=3"),
        (dict(activation_function="mish"), "activation 'mish' is not supported"),
        (dict(is_encoder_decoder=False), "is_encoder_decoder=False is not supported, only True"),
        (dict(normalize_before=False), "normalize_before=False is not supported, only True"),
    ],
)
def test_fields_that_cannot_be_computed_are_named(fields, message, pegasus, tmp_path):
    with pytest.raises(PretrainedError, match=message):
        read_model(changed(pegasus, tmp_path, fields, {}))


def test_an_untied_marian_shares_no_table(tmp_path):
    config = bart_config(np.random.default_rng(0), official.MarianConfig, 0, tie_word_embeddings=False)
    with pytest.raises(PretrainedError, match="share_encoder_decoder_embeddings=True is not supported, only False"):
        make(official.MarianMTModel, config, tmp_path)


def test_copies_that_differ_are_named(pegasus, tmp_path):
    stored = load_file(pegasus.folder / "model.safetensors")
    table, shared = "model.encoder.embed_positions.weight", "model.shared.weight"
    with pytest.raises(PretrainedError, match=f"tensor {table} differs from what the config says"):
        read_model(changed(pegasus, tmp_path, {}, {table: stored[table] + 0.1}))
    with pytest.raises(PretrainedError, match=f"tensor lm_head.weight differs from {shared}"):
        read_model(changed(pegasus, tmp_path, {}, {"lm_head.weight": stored[shared] + 1}))


def test_a_config_finds_its_family_or_hears_why_not(t5_1_1, pegasus):
    assert fitting_family(t5_1_1.config).model_type == "t5"
    assert fitting_family(pegasus.config).model_type == "pegasus"
    with pytest.raises(PretrainedError, match="scale_logits=True, where the family has False"):
        check_fits(family_of("mt5"), t5_1_1.config.model_copy(update=dict(scale_logits=True)))
    with pytest.raises(PretrainedError, match="embedding_norm=False, where the family has True"):
        check_fits(family_of("bart"), pegasus.config)
