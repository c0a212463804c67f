"""Decoders compute what the official ones compute, number by number, and their files are the same byte by byte."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
official = pytest.importorskip("transformers")

import parity  # noqa: E402

from model.pretrained import read_model, write_model  # noqa: E402

pytestmark = pytest.mark.parity

NUM_DRAWS = 5
# Longer than every sliding window and every original length of rotary positions below.
LENGTH = 13


def sizes(rng: np.random.Generator, depth: int = 2) -> dict:
    """What all of them call alike; heads divide the width, but `head_dim` is free."""
    heads, kv_heads = rng.choice([(4, 4), (4, 2), (4, 1), (6, 3), (2, 1)])
    return dict(
        vocab_size=int(rng.integers(40, 99)),
        hidden_size=int(heads * rng.choice([6, 8])),
        num_hidden_layers=depth,
        num_attention_heads=int(heads),
        num_key_value_heads=int(kv_heads),
        head_dim=int(rng.choice([6, 8, 10])),
        intermediate_size=int(4 * rng.integers(5, 15)),  # rows of 16 bytes, for torch's grouped products
        max_position_embeddings=40,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5, 1e-3])),
        tie_word_embeddings=bool(rng.integers(2)),
    )


def gate(rng: np.random.Generator) -> str:
    return str(rng.choice(["silu", "gelu_pytorch_tanh", "relu"]))


def rotary(rng: np.random.Generator, draw: int) -> dict:
    """Every kind of scaling in turn, in the new spelling and in the old one."""
    base = float(rng.choice([100.0, 10_000.0, 500_000.0]))
    yarn = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8)
    parameters = [
        dict(rope_type="default"),
        dict(rope_type="linear", factor=3.0),
        dict(rope_type="dynamic", factor=2.0),
        yarn | dict(beta_fast=2.0, beta_slow=0.05, truncate=bool(rng.integers(2))),
        dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=10,
        ),
        yarn | dict(mscale=0.7, mscale_all_dim=1.3, beta_slow=0.1),
        yarn | dict(attention_factor=1.25, factor=None),
    ][draw]
    length = dict(max_position_embeddings=8) if parameters["rope_type"] == "dynamic" else {}
    if draw % 2:
        return length | dict(rope_theta=base, rope_scaling=parameters)
    return length | dict(rope_parameters=parameters | dict(rope_theta=base))


def gpt2(rng, draw):
    heads = int(rng.choice([2, 4]))
    return official.GPT2LMHeadModel, official.GPT2Config(
        vocab_size=int(rng.integers(40, 99)),
        n_positions=40,
        n_embd=8 * heads,
        n_layer=2,
        n_head=heads,
        n_inner=None if draw == 0 else int(rng.integers(20, 60)),
        activation_function=["gelu_new", "relu", "gelu", "silu", "gelu_pytorch_tanh"][draw],
        layer_norm_epsilon=float(rng.choice([1e-5, 1e-3])),
        scale_attn_weights=draw != 2,
        tie_word_embeddings=draw != 3,
    )


def llama(rng, draw):
    return official.LlamaForCausalLM, official.LlamaConfig(
        **sizes(rng) | rotary(rng, draw),
        hidden_act=gate(rng),
        attention_bias=draw in (1, 3),
        mlp_bias=draw in (2, 3),
    )


def mistral(rng, draw):
    window = [4, None, 7, 1, 40][draw]
    return official.MistralForCausalLM, official.MistralConfig(
        **sizes(rng), hidden_act=gate(rng), sliding_window=window
    )


def mixtral(rng, draw):
    experts = int(rng.integers(3, 7))
    return official.MixtralForCausalLM, official.MixtralConfig(
        **sizes(rng),
        hidden_act=gate(rng),
        sliding_window=[None, 5][draw % 2],
        num_local_experts=experts,
        num_experts_per_tok=int(rng.integers(1, experts)),
        router_aux_loss_coef=0.02,
    )


def qwen_window(draw: int) -> dict:
    """No window, in all layers, unused, by the list of layers, beyond the last layer."""
    return [
        dict(),
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=0),
        dict(use_sliding_window=False, sliding_window=5, max_window_layers=0),
        dict(use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=2),
    ][draw]


def qwen2(rng, draw):
    fields = sizes(rng)
    del fields["head_dim"]
    return official.Qwen2ForCausalLM, official.Qwen2Config(**fields, hidden_act=gate(rng), **qwen_window(draw))


def qwen3(rng, draw):
    return official.Qwen3ForCausalLM, official.Qwen3Config(
        **sizes(rng), hidden_act=gate(rng), attention_bias=bool(draw % 2), **qwen_window(draw)
    )


def gemma(rng, draw):
    hidden_act = ["gelu", "gelu_pytorch_tanh", "silu", "relu", "gelu_new"][draw]
    return official.GemmaForCausalLM, official.GemmaConfig(
        **sizes(rng), hidden_act=hidden_act, attention_bias=draw == 4
    )


def gemma2(rng, draw):
    return official.Gemma2ForCausalLM, official.Gemma2Config(
        **sizes(rng, depth=3),
        hidden_activation=gate(rng),
        query_pre_attn_scalar=int(rng.integers(3, 50)),
        sliding_window=int(rng.integers(2, 9)),
        final_logit_softcapping=[1.5, None][draw == 1],
        attn_logit_softcapping=[0.7, None][draw in (1, 2)],
        attention_bias=draw == 3,
        layer_types=["full_attention"] * 3 if draw == 4 else None,
    )


def gemma3(rng, draw):
    pattern = [dict(sliding_window_pattern=2), {}, dict(sliding_window_pattern=3), {}, {}][draw]
    kinds = [None, None, None, ["full_attention"] * 3, ["sliding_attention"] * 2 + ["full_attention"]][draw]
    bases = [
        dict(rope_theta=500.0, rope_local_base_freq=20.0, rope_scaling=dict(rope_type="linear", factor=4.0)),
        dict(rope_parameters=None),
        dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=300.0, factor=8.0),
                sliding_attention=dict(rope_type="default", rope_theta=30.0),
            )
        ),
        dict(rope_theta=500.0),
        dict(rope_local_base_freq=20.0),
    ][draw]
    return official.Gemma3ForCausalLM, official.Gemma3TextConfig(
        **sizes(rng, depth=3),
        hidden_activation=gate(rng),
        query_pre_attn_scalar=int(rng.integers(3, 50)),
        sliding_window=int(rng.integers(2, 9)),
        final_logit_softcapping=[1.5, None][draw == 1],
        attention_bias=draw == 3,
        layer_types=kinds,
        **pattern,
        **bases,
    )


FAMILIES = (gpt2, llama, mistral, mixtral, qwen2, qwen3, gemma, gemma2, gemma3)
CASES = [(family, draw) for family in FAMILIES for draw in range(NUM_DRAWS)] + [(llama, 5), (llama, 6)]


def make(family, draw: int, folder) -> tuple[parity.Pair, np.random.Generator]:
    rng = np.random.default_rng(draw)
    return parity.make(*family(rng, draw), folder, seed=draw), rng


@pytest.mark.parametrize("family, draw", CASES, ids=[f"{family.__name__}-{draw}" for family, draw in CASES])
def test_same_numbers(family, draw, tmp_path):
    """Also of the official model that opens what we write without knowing the original config.json."""
    pair, rng = make(family, draw, tmp_path / "official")
    tokens = parity.draw(rng, pair, length=LENGTH)
    parity.check_decoder(pair, tokens)
    write_model(tmp_path / "ours", pair.config, pair.params, family=pair.official.config.model_type)
    opened = type(pair.official).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        before, after = (model(torch.tensor(tokens.ids)).logits for model in (pair.official, opened))
    assert torch.allclose(before, after, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_text(family, tmp_path):
    pair, rng = make(family, 0, tmp_path)
    parity.check_greedy(pair, parity.draw(rng, pair, length=LENGTH))


@pytest.mark.parametrize("draw", [2, 3])
def test_same_text_beyond_the_original_length(draw, tmp_path):
    """One row: the base of dynamic scaling is that of the longest."""
    pair, rng = make(llama, draw, tmp_path)
    parity.check_greedy(pair, parity.draw(rng, pair, batch=1, length=5))


@pytest.mark.parametrize("family", FAMILIES)
def test_same_files(family, tmp_path):
    pair, _ = make(family, 1, tmp_path / "official")
    parity.check_files(pair, tmp_path)


def test_gpt2_without_its_prefix_and_with_its_mask(tmp_path):
    """As the first published files have it: no head, no prefix, and the causal mask among the tensors."""
    pair, _ = make(gpt2, 0, tmp_path / "official")
    bare = official.GPT2Model(pair.official.config)
    bare.load_state_dict(pair.official.transformer.state_dict())
    for block in bare.h:
        block.attn.register_buffer("bias", torch.tril(torch.ones(1, 1, 40, 40)))
        block.attn.register_buffer("masked_bias", torch.tensor(-1e4))
    bare.save_pretrained(tmp_path / "bare")
    config, params = read_model(tmp_path / "bare")
    assert config == pair.config
    np.testing.assert_array_equal(params["token_embedding"]["embedding"], pair.params["token_embedding"]["embedding"])
