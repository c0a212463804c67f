"""Official models of transformers with random weights, and how ours compare with them: number by number, byte by byte.

    pair = make(BertForMaskedLM, BertConfig(...), tmp_path / "official", seed=0)
    check_encoder(pair, draw(rng, pair))
    check_files(pair, tmp_path)

A test imports this module after `pytest.importorskip("torch")` and `pytest.importorskip("transformers")`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from ours import Tokens, apply, contents, greedy
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from model.config import TransformerConfig
from model.pretrained import read_model, write_model
from model.transformer import transformer

TOLERANCE = 1e-4
PER_TOKEN = ("hidden", "lm", "tokens", "span", "detection")
NUM_RESERVED = 5  # tokens drawn are never below, where families keep padding and its like


@dataclass(frozen=True)
class Pair:
    """An official model, the folder it was saved to, and what we read from there."""

    official: PreTrainedModel
    folder: Path
    config: TransformerConfig
    params: dict[str, Any]

    @property
    def pad_id(self) -> int:
        pad = self.official.config.pad_token_id
        return 0 if pad is None else pad


def as_torch(tokens: Tokens) -> dict[str, torch.Tensor]:
    """Arguments of an official model."""
    return dict(input_ids=torch.tensor(tokens.ids), attention_mask=torch.tensor(tokens.is_real.astype(np.int64)))


def make(model_class: type, official_config: PretrainedConfig, folder: Path, seed: int = 0) -> Pair:
    """A pair with random weights, in float32 and without dropout."""
    official = model_class(official_config).eval()
    randomize(official, seed)
    official.save_pretrained(folder)
    return Pair(official, folder, *read_model(folder))


def randomize(official: PreTrainedModel, seed: int) -> None:
    """Weights of such a spread that every mechanism shows: activations and logits of order 1.

    Sinusoidal tables are parameters without gradient there; they stay what they are.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor, stddev: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * stddev

    for parameter in official.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim > 1:
            parameter.data = noise(parameter, parameter.shape[-1] ** -0.5)
        else:
            parameter.data = parameter.data + noise(parameter, 0.1)
    for name, buffer in official.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.data = noise(buffer, 0.5)
    for head in official.modules():
        # A masked-LM head that is not tied has a bias of its own that it does not use, beside its decoder's.
        if hasattr(head, "bias") and hasattr(getattr(head, "decoder", None), "bias"):
            head.bias.data = head.decoder.bias.data.clone()
    official.tie_weights()


def draw(rng: np.random.Generator, pair: Pair, batch: int = 3, length: int = 11) -> Tokens:
    """Random tokens; the first row is full."""
    lengths = np.concatenate([[length], rng.integers(3, length, batch - 1)])
    is_real = np.arange(length) < lengths[:, None]
    ids = rng.integers(NUM_RESERVED, pair.official.config.vocab_size, (batch, length))
    return Tokens(np.where(is_real, ids, pair.pad_id), is_real)


# Numbers ---------------------------------------------------------------------------------------------------


def difference(ours: Any, official: torch.Tensor, is_real: np.ndarray | None = None) -> float:
    """The largest absolute difference, over the real tokens [batch, length, …] only where they are named."""
    ours, official = np.asarray(ours), official.detach().numpy()
    assert ours.shape == official.shape, f"shapes {ours.shape} and {official.shape} differ"
    gap = np.abs(ours - official)
    return float((gap if is_real is None else gap[is_real]).max())


def hidden_difference(ours: jax.Array, official: Sequence[torch.Tensor], is_real: np.ndarray, config) -> float:
    """Of all layers. `official` begins with the embeddings, and its last state lies after the final norm, if any."""
    states = list(official[1:])
    if config.norm_placement != "post":
        states = states[:-1]
    assert len(ours) == len(official) - 1
    return max((difference(a, b, is_real) for a, b in zip(ours, states, strict=False)), default=0.0)


def check_encoder(pair: Pair, tokens: Tokens, sentence_ids: np.ndarray | None = None) -> float:
    """All hidden states and the outputs of all heads of an encoder; the largest difference.

    For a multiple choice, the rows are the choices of one question.
    """
    kinds = {} if sentence_ids is None else dict(token_type_ids=torch.tensor(sentence_ids))
    with torch.no_grad():
        official = pair.official(**_for_heads(pair, as_torch(tokens) | kinds), output_hidden_states=True)
    kinds = {} if sentence_ids is None else dict(sentence_ids=sentence_ids)
    ours, hidden = apply(transformer(pair.config), pair.params, tokens.ids, segment_ids=tokens.segment_ids, **kinds)
    gaps = {"hidden states": hidden_difference(hidden["encoder"], official.hidden_states, tokens.is_real, pair.config)}
    outputs = pair.config.heads or (("hidden",) if pair.config.pooler == "none" else ("hidden", "pooled"))
    for name in outputs:
        expected = official_output(name, official)
        gaps[name] = difference(ours[name], expected, tokens.is_real if name in PER_TOKEN else None)
    return _within(gaps)


def official_output(name: str, official: Any) -> torch.Tensor:
    """What the official output calls one of our encoder's outputs."""
    if name == "span":
        return torch.stack([official.start_logits, official.end_logits], dim=-1)
    attributes = {
        "hidden": "last_hidden_state",
        "pooled": "pooler_output",
        "lm": "prediction_logits",
        "sentence_pair": "sop_logits" if "sop_logits" in official else "seq_relationship_logits",
    }
    found = official[attributes[name]] if attributes.get(name) in official else official["logits"]
    return found[0] if name == "choice" else found


def _for_heads(pair: Pair, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A multiple choice takes [questions, choices, length]."""
    return {name: value[None] for name, value in inputs.items()} if "choice" in pair.config.heads else inputs


def check_decoder(pair: Pair, tokens: Tokens) -> float:
    """Logits and all hidden states of a decoder; the largest difference."""
    with torch.no_grad():
        official = pair.official(**as_torch(tokens), output_hidden_states=True)
    logits, hidden = apply(transformer(pair.config), pair.params, tokens.ids)
    gaps = {
        "hidden states": hidden_difference(hidden["decoder"], official.hidden_states, tokens.is_real, pair.config),
        "logits": difference(logits, official.logits, tokens.is_real),
    }
    return _within(gaps)


def check_encoder_decoder(pair: Pair, source: Tokens, target: Tokens) -> float:
    """Logits and both stacks' hidden states; the largest difference."""
    decoder = {f"decoder_{name}": value for name, value in as_torch(target).items()}
    with torch.no_grad():
        official = pair.official(**as_torch(source), **decoder, output_hidden_states=True)
    logits, hidden = apply(
        transformer(pair.config), pair.params, source.ids, target.ids, encoder_segment_ids=source.segment_ids
    )
    encoder, decoder = official.encoder_hidden_states, official.decoder_hidden_states
    gaps = {
        "encoder": hidden_difference(hidden["encoder"], encoder, source.is_real, pair.config),
        "decoder": hidden_difference(hidden["decoder"], decoder, target.is_real, pair.config),
        "logits": difference(logits, official.logits, target.is_real),
    }
    return _within(gaps)


def _within(gaps: dict[str, float]) -> float:
    assert max(gaps.values()) < TOLERANCE, f"largest differences: {gaps}"
    return max(gaps.values())


def check_greedy(pair: Pair, prompts: Tokens, source: Tokens | None = None, num_steps: int = 12) -> float:
    """The same `num_steps` tokens after each prompt, from the same logits; the largest difference of these.

    The prompts of a model with a `source` are what the decoder starts with. Official rows are written one by one,
    ours side by side through the cache. Neither ends early.
    """
    expected, logits = official_greedy(pair, prompts, source, num_steps)
    written, own_logits = greedy(pair.config, pair.params, prompts, source, num_steps)
    gap = difference(own_logits, logits)
    np.testing.assert_array_equal(written, expected)
    return _within({"logits": gap})


def official_greedy(
    pair: Pair, prompts: Tokens, source: Tokens | None, num_steps: int
) -> tuple[np.ndarray, torch.Tensor]:
    """The tokens [batch, num_steps] after each prompt, and the logits [batch, num_steps, vocab] that chose them."""
    rows = [_official_row(pair, prompts, source, row, num_steps) for row in range(len(prompts.ids))]
    return np.array([tokens for tokens, _ in rows]), torch.stack([logits for _, logits in rows])


def _official_row(
    pair: Pair, prompts: Tokens, source: Tokens | None, row: int, num_steps: int
) -> tuple[list[int], torch.Tensor]:
    official = pair.official
    prompt = torch.tensor(prompts.ids[row : row + 1, : prompts.lengths[row]])
    official.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=num_steps,
        pad_token_id=pair.pad_id,
        decoder_start_token_id=None if source is None else int(prompt[0, 0]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    if source is None:
        inputs = dict(input_ids=prompt)
    else:
        own = torch.tensor(source.ids[row : row + 1, : source.lengths[row]])
        inputs = dict(input_ids=own, attention_mask=torch.ones_like(own), decoder_input_ids=prompt)
    with torch.no_grad():
        written = official.generate(**inputs)
    return written.sequences[0, prompt.shape[1] :].tolist(), torch.cat(written.logits)


# Files -----------------------------------------------------------------------------------------------------


def check_files(pair: Pair, folder: Path) -> None:
    """All that follows; of a family's many draws and classes, one or two are enough for it."""
    check_export(pair, folder)
    check_reads_shards(pair, folder / "official_shards")
    check_bfloat16(pair, folder / "bfloat16")
    check_defaults(pair, folder / "defaults")


def check_export(pair: Pair, folder: Path) -> None:
    """What was read is written again with the same names and bytes, and the official class opens it, from shards."""
    official = json.loads((pair.folder / "config.json").read_text("utf-8"))
    write_model(folder / "same", pair.config, pair.params, original=official)
    assert contents(folder / "same") == contents(pair.folder)
    write_model(folder / "shards", pair.config, pair.params, family=official["model_type"], max_shard_bytes=2_000)
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    written = json.loads((folder / "shards" / "config.json").read_text("utf-8"))
    assert written["architectures"] == official["architectures"]
    check_opens(pair, folder / "shards")


def check_opens(pair: Pair, folder: Path) -> None:
    """The official class opens `folder` without a missing or unexpected tensor, has the same parameters and output."""
    opened, info = type(pair.official).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    ours, theirs = opened.state_dict(), pair.official.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tokens = draw(np.random.default_rng(0), pair)
    named = {"decoder_input_ids": torch.tensor(tokens.ids)} if pair.config.stack == "encoder_decoder" else {}
    named = _for_heads(pair, as_torch(tokens) | named)
    with torch.no_grad():
        before, after = pair.official(**named)[0], opened.eval()(**named)[0]
    assert torch.allclose(before, after, rtol=0, atol=1e-5)


def check_reads_shards(pair: Pair, folder: Path) -> None:
    """The same parameters come from the official model's shards."""
    pair.official.save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    config, params = read_model(folder)
    assert config == pair.config
    jax.tree.map(np.testing.assert_array_equal, params, pair.params)


def check_bfloat16(pair: Pair, folder: Path) -> None:
    """A model stored in bfloat16 stays so, to the byte."""
    copy.deepcopy(pair.official).to(torch.bfloat16).save_pretrained(folder / "official")
    config, params = read_model(folder / "official")
    assert config.param_dtype == "bfloat16"
    write_model(folder / "ours", config, params, family=pair.official.config.model_type)
    assert contents(folder / "ours") == contents(folder / "official")


def check_defaults(pair: Pair, folder: Path) -> None:
    """A config.json without the fields that equal the official defaults means the same; sizes are always there."""
    official = json.loads((pair.folder / "config.json").read_text("utf-8"))
    defaults = type(pair.official.config)().to_dict()
    named = ("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads")
    kept = {name: value for name, value in official.items() if name in named or defaults.get(name, ...) != value}
    assert len(kept) < len(official)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(kept), "utf-8")
    for file in pair.folder.glob("*.safetensors"):
        (folder / file.name).symlink_to(file)
    assert read_model(folder)[0] == pair.config
