"""The config.json of published decoders: old and new spellings, what may be left out, what is refused, and why."""

import pytest

from model.config import LinearScaling, Llama3Scaling, NTKScaling, TransformerConfig, Unscaled, YaRNScaling
from model.pretrained import check_fits, family_of, fitting_family
from model.pretrained.llama import FULL, SLIDING, read_windows, write_windows
from model.pretrained.names import PretrainedError

SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
    max_position_embeddings=64,
)
GPT2 = dict(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2)
LLAMA_LIKE = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


def read(model_type: str, **fields) -> TransformerConfig:
    return family_of(model_type).to_config((GPT2 if model_type == "gpt2" else SIZES) | fields, set())


SCALINGS = [
    (dict(rope_type="default"), Unscaled()),
    (dict(rope_type="linear", factor=2.0), LinearScaling(factor=2.0)),
    (dict(rope_type="dynamic", factor=2.0), NTKScaling(factor=2.0, original_length=64)),
    (dict(rope_type="yarn", factor=2.0), YaRNScaling(factor=2.0, original_length=64)),
    (
        dict(rope_type="yarn", factor=None, original_max_position_embeddings=16, beta_fast=None, truncate=False),
        YaRNScaling(factor=4.0, original_length=16, truncate=False),
    ),
    (
        dict(rope_type="yarn", factor=4.0, attention_factor=1.5, mscale=1.0, mscale_all_dim=2.0),
        YaRNScaling(factor=4.0, original_length=64, attention_factor=1.5),
    ),
    (
        dict(rope_type="yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0),
        YaRNScaling(factor=4.0, original_length=64, attention_factor=1.0),
    ),
    (
        dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        Llama3Scaling(original_length=32),
    ),
]


@pytest.mark.parametrize("parameters, scaling", SCALINGS)
def test_rotary_positions_in_every_spelling(parameters, scaling):
    kind = parameters["rope_type"]
    without_kind = {name: value for name, value in parameters.items() if name != "rope_type"}
    spellings = (
        dict(rope_parameters=parameters | dict(rope_theta=500.0)),
        dict(rope_parameters=parameters, rope_theta=500.0),
        dict(rope_scaling=parameters, rope_theta=500.0),
        dict(rope_scaling=without_kind | dict(type=kind), rope_theta=500.0),
    )
    for spelling in spellings:
        config = read("llama", **spelling)
        assert (config.rotary_base, config.rotary_scaling) == (500.0, scaling)


def test_rotary_base_that_is_left_out():
    assert {name: read(name).rotary_base for name in LLAMA_LIKE} == {
        **dict.fromkeys(LLAMA_LIKE, 10_000.0),
        "mixtral": 1_000_000.0,
        "gemma3_text": 10_000.0,  # four layers, all with a window
    }


@pytest.mark.parametrize(
    "fields",
    [
        dict(rope_theta=9e5, rope_local_base_freq=9e3, rope_scaling=dict(type="linear", factor=8.0)),
        dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=9e5, factor=8.0),
                sliding_attention=dict(rope_type="default", rope_theta=9e3),
            )
        ),
    ],
)
def test_gemma3_has_two_bases(fields):
    config = read("gemma3_text", sliding_window_pattern=2, sliding_window=8, **fields)
    assert (config.rotary_base, config.local_rotary_base) == (9e5, 9e3)
    assert config.rotary_scaling == LinearScaling(factor=8.0)
    assert (config.sliding_window, config.global_every) == (8, 2)


@pytest.mark.parametrize("every", [None, 2, 3, 4])
@pytest.mark.parametrize("num_layers", [1, 2, 4, 7])
def test_windows_round_trip(num_layers, every):
    kinds = [FULL if every and (i + 1) % every == 0 else SLIDING for i in range(num_layers)]
    config = TransformerConfig(num_layers=num_layers, **read_windows(kinds, 5))
    assert write_windows(config) == dict(layer_types=kinds, sliding_window=5)
    assert read_windows([FULL] * num_layers, 5) == {}


def test_mistral_has_a_window_unless_it_is_null():
    assert read("mistral").sliding_window == 4096
    assert read("mistral", sliding_window=None).sliding_window is None
    assert read("mixtral").sliding_window is None
    assert read("qwen2").sliding_window is None


REFUSED = [
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention=True"),
    ("gpt2", dict(activation_function="quick_gelu"), "quick_gelu"),
    ("gpt2", dict(embd_pdrop=0.3), "embd_pdrop=0.3"),
    ("llama", dict(hidden_act="gelu"), "gated by 'gelu'"),
    ("llama", dict(rope_scaling=dict(type="longrope")), "rope_type='longrope'"),
    ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    ("llama", dict(rope_parameters=dict(partial_rotary_factor=0.5)), "partial_rotary_factor=0.5"),
    ("mistral", dict(layer_types=[FULL] * 4), "layer_types"),
    ("mixtral", dict(router_jitter_noise=0.1), "router_jitter_noise=0.1"),
    ("qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=2), "layer_types"),
    ("qwen3", dict(layer_types=[SLIDING] * 4), "no sliding_window"),
    ("qwen3", dict(layer_types=["chunked_attention"] * 4, use_sliding_window=True), "chunked_attention"),
    ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    ("gemma3_text", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    ("gemma3_text", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0"),
    ("gemma3_text", dict(rope_parameters={SLIDING: dict(rope_type="linear", factor=2.0)}), "rope_type"),
]


@pytest.mark.parametrize("model_type, fields, named", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(model_type, fields, named):
    with pytest.raises(PretrainedError, match=named):
        read(model_type, **fields)


TINY = dict(vocab_size=40, num_layers=2, embed_dim=16, num_heads=2)
LLAMA = TINY | dict(norm="rms", use_bias=False, activation="swiglu", tie_embeddings=False)
MISFITS = [
    ("gpt2", TINY, "positions='rotary'"),
    ("gpt2", TINY | dict(positions="learned", attention_scale=0.3), "attention_scale=0.3"),
    ("llama", LLAMA | dict(norm="layer"), "norm='layer'"),
    ("llama", LLAMA | dict(activation="relu"), "activation='relu'"),
    ("llama", LLAMA | dict(attention_bias="qkv"), "attention_bias='qkv'"),
    ("llama", LLAMA | dict(num_heads=3, head_dim=8), "num_heads=3"),
    ("llama", LLAMA | dict(sliding_window=8), "sliding_window=8"),
    ("llama", LLAMA | dict(rotary_scaling=NTKScaling(original_length=99)), "rotary_scaling"),
    ("mixtral", LLAMA, "num_experts"),
    ("mixtral", LLAMA | dict(num_experts=4, num_shared_experts=1), "feed_forward/shared"),
    ("mixtral", LLAMA | dict(num_experts=4, expert_capacity_factor=1.0), "expert_capacity_factor"),
    ("qwen3", LLAMA, "query_key_norm=False"),
    ("gemma2", LLAMA, "norm_placement='pre'"),
]


@pytest.mark.parametrize("model_type, fields, named", MISFITS)
def test_a_family_says_what_it_lacks(model_type, fields, named):
    with pytest.raises(PretrainedError, match=named):
        check_fits(family_of(model_type), TransformerConfig(**fields))


def test_the_first_family_that_fits_is_chosen():
    window = dict(sliding_window=8)
    wanted = {
        "gpt2": TransformerConfig(**TINY, positions="learned"),
        "llama": TransformerConfig(**LLAMA),
        "mistral": TransformerConfig(**LLAMA | window),
        "qwen2": TransformerConfig(**LLAMA | dict(attention_bias="qkv")),
        "gemma3_text": read("gemma3_text"),
    }
    assert {name: fitting_family(config).model_type for name, config in wanted.items()} == {
        name: name for name in wanted
    }
