"""Records one tiny official model of each family with its outputs, for the tests that do without torch.

    python tests/model/pretrained/record.py            # all families
    python tests/model/pretrained/record.py bert t5    # some

Writes `fixtures/MODEL_TYPE/`: config.json, model.safetensors, and expected.npz with

    tokens, is_real [batch, length]; of an encoder–decoder also source, source_is_real
    hidden_states, of an encoder–decoder also encoder_hidden_states [layers, batch, length, embed]; where a final
        norm follows, without those of the last layer
    the outputs of an encoder's heads by their names, else logits [batch, length, vocab]
    prompts, is_prompt [batch, length] and written [batch, 12], the most likely tokens after them
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from ours import Tokens
from parity import Pair, as_torch, draw, make, official_greedy, official_output

FIXTURES = Path(__file__).parent / "fixtures"
NUM_WRITTEN = 12

ENCODER = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=20,
    max_position_embeddings=20,
)
DISTILBERT = dict(vocab_size=40, dim=16, n_layers=2, n_heads=4, hidden_dim=20, max_position_embeddings=20)
DECODER = ENCODER | dict(num_key_value_heads=2, max_position_embeddings=32)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=10,
)
MIXTRAL = dict(num_local_experts=3, num_experts_per_tok=2, intermediate_size=8, head_dim=4)
GEMMA2 = dict(head_dim=6, sliding_window=5, query_pre_attn_scalar=9, attn_logit_softcapping=0.7)
GEMMA3 = dict(
    head_dim=6,
    sliding_window=5,
    sliding_window_pattern=2,
    query_pre_attn_scalar=9,
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", rope_theta=500.0, factor=8.0),
        sliding_attention=dict(rope_type="default", rope_theta=20.0),
    ),
)
BART = dict(
    vocab_size=40,
    d_model=8,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=12,
    decoder_ffn_dim=12,
    max_position_embeddings=20,
    pad_token_id=1,
    decoder_start_token_id=2,
)
T5 = dict(
    vocab_size=40,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    pad_token_id=0,
    decoder_start_token_id=0,
)
# Model type → the beginning of its classes' names, the rest of the model class's, and what is asked of the config.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "ForPreTraining", ENCODER),
    "roberta": ("Roberta", "ForMaskedLM", ENCODER),
    "distilbert": ("DistilBert", "ForSequenceClassification", DISTILBERT | dict(num_labels=3)),
    "albert": ("Albert", "ForPreTraining", ENCODER | dict(embedding_size=8)),
    "electra": ("Electra", "ForPreTraining", ENCODER | dict(embedding_size=8)),
    "gpt2": ("GPT2", "LMHeadModel", dict(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_inner=24, n_positions=32)),
    "llama": ("Llama", "ForCausalLM", DECODER | dict(rope_parameters=LLAMA3, attention_bias=True)),
    "mistral": ("Mistral", "ForCausalLM", DECODER | dict(sliding_window=5)),
    "mixtral": ("Mixtral", "ForCausalLM", DECODER | MIXTRAL),
    "qwen2": ("Qwen2", "ForCausalLM", DECODER | dict(tie_word_embeddings=True, max_window_layers=2)),
    "qwen3": ("Qwen3", "ForCausalLM", DECODER | dict(head_dim=6, max_window_layers=2)),
    "gemma": ("Gemma", "ForCausalLM", DECODER | dict(head_dim=6)),
    "gemma2": ("Gemma2", "ForCausalLM", DECODER | GEMMA2),
    "gemma3_text": ("Gemma3", "ForCausalLM", DECODER | GEMMA3),
    "t5": ("T5", "ForConditionalGeneration", T5),
    "mt5": ("MT5", "ForConditionalGeneration", T5),
    "bart": ("Bart", "ForConditionalGeneration", BART),
    "pegasus": ("Pegasus", "ForConditionalGeneration", BART),
    "marian": ("Marian", "MTModel", BART),
}


def record(model_type: str) -> Path:
    """Write one fixture; returns its folder."""
    family, kind, fields = MODELS[model_type]
    rng = np.random.default_rng(0)
    config_name = "Gemma3TextConfig" if model_type == "gemma3_text" else f"{family}Config"
    config = getattr(transformers, config_name)(**fields)
    target = FIXTURES / model_type
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        pair = make(getattr(transformers, family + kind), config, Path(folder))
        target.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(Path(folder) / name, target / name)
    expect = {"encoder": _encoder, "decoder": _decoder, "encoder_decoder": _encoder_decoder}[pair.config.stack]
    with torch.no_grad():
        expected = expect(pair, rng)
    np.savez_compressed(target / "expected.npz", **{name: np.asarray(value) for name, value in expected.items()})
    return target


def _layers(pair: Pair, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Without the embeddings, and without a last state that a final norm has changed."""
    return torch.stack(states[1 : None if pair.config.norm_placement == "post" else -1])


def _encoder(pair: Pair, rng: np.random.Generator) -> dict[str, Any]:
    tokens = draw(rng, pair)
    output = pair.official(**as_torch(tokens), output_hidden_states=True)
    heads = {head: official_output(head, output) for head in pair.config.heads}
    return dict(tokens=tokens.ids, is_real=tokens.is_real, hidden_states=_layers(pair, output.hidden_states), **heads)


def _decoder(pair: Pair, rng: np.random.Generator) -> dict[str, Any]:
    tokens = draw(rng, pair)
    output = pair.official(**as_torch(tokens), output_hidden_states=True)
    return dict(
        tokens=tokens.ids,
        is_real=tokens.is_real,
        hidden_states=_layers(pair, output.hidden_states),
        logits=output.logits,
        prompts=tokens.ids,
        is_prompt=tokens.is_real,
        written=official_greedy(pair, tokens, None, NUM_WRITTEN)[0],
    )


def _encoder_decoder(pair: Pair, rng: np.random.Generator) -> dict[str, Any]:
    source, target = draw(rng, pair), draw(rng, pair, length=7)
    inputs = as_torch(source) | {f"decoder_{name}": value for name, value in as_torch(target).items()}
    output = pair.official(**inputs, output_hidden_states=True)
    start = np.full((len(source.ids), 1), pair.official.config.decoder_start_token_id)
    prompts = Tokens(start, np.ones_like(start, bool))
    return dict(
        source=source.ids,
        source_is_real=source.is_real,
        tokens=target.ids,
        is_real=target.is_real,
        encoder_hidden_states=_layers(pair, output.encoder_hidden_states),
        hidden_states=_layers(pair, output.decoder_hidden_states),
        logits=output.logits,
        prompts=prompts.ids,
        is_prompt=prompts.is_real,
        written=official_greedy(pair, prompts, source, NUM_WRITTEN)[0],
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        print(record(name))
