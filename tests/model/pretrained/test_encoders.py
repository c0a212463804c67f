"""Encoders compute what the official ones compute, number by number, and their files are the same byte by byte."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
official = pytest.importorskip("transformers")

import parity  # noqa: E402

from model.pretrained import read_model, write_model  # noqa: E402

pytestmark = pytest.mark.parity

CLASSES = {
    "Bert": (
        "Model",
        "ForPreTraining",
        "ForMaskedLM",
        "ForNextSentencePrediction",
        "ForSequenceClassification",
        "ForMultipleChoice",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
    "Roberta": (
        "Model",
        "ForMaskedLM",
        "ForSequenceClassification",
        "ForMultipleChoice",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
}
CLASSES["Albert"] = ("ForPreTraining", *CLASSES["Roberta"])
CLASSES["Electra"] = ("ForPreTraining", *CLASSES["Roberta"])
CLASSES["DistilBert"] = CLASSES["Roberta"]
EVERY = [(family, kind) for family, kinds in CLASSES.items() for kind in kinds]


def draw_config(family: str, kind: str, rng: np.random.Generator):
    """A random config: widths, heads, depth, tying, activation, epsilon, and what only some families have."""
    heads = int(rng.choice([1, 2, 3, 4]))
    is_fixed_gelu = kind == "ForMaskedLM" and family in ("Roberta", "Electra")
    fields = dict(
        vocab_size=int(rng.integers(40, 99)),
        hidden_size=heads * int(rng.choice([6, 8, 10])),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads,
        intermediate_size=int(rng.integers(20, 60)),
        max_position_embeddings=int(rng.integers(20, 40)),
        hidden_act="gelu" if is_fixed_gelu else str(rng.choice(["gelu", "relu", "gelu_new", "silu"])),
        tie_word_embeddings=bool(rng.integers(2)),
        type_vocab_size=int(rng.integers(1, 4)),
        layer_norm_eps=float(rng.choice([1e-12, 1e-5, 1e-3])),
        pad_token_id=int(rng.integers(0, 3)),
    )
    if kind in ("ForSequenceClassification", "ForTokenClassification"):
        fields["num_labels"] = int(rng.integers(1, 5))
    if family in ("Albert", "Electra"):
        fields["embedding_size"] = int(rng.choice([12, fields["hidden_size"]]))
    if family == "Electra":
        fields["summary_activation"] = str(rng.choice(["gelu", "tanh", "relu"]))
    if family == "DistilBert":
        renamed = dict(hidden_act="activation", intermediate_size="hidden_dim")
        renamed |= dict(hidden_size="dim", num_hidden_layers="n_layers", num_attention_heads="n_heads")
        fields = {renamed.get(name, name): value for name, value in fields.items()}
        del fields["type_vocab_size"], fields["layer_norm_eps"]
        fields["sinusoidal_pos_embds"] = bool(rng.integers(2))
    return getattr(official, f"{family}Config")(**fields)


def draw_pair(family: str, kind: str, seed: int, folder) -> tuple[parity.Pair, np.random.Generator]:
    rng = np.random.default_rng([seed, *family.encode(), *kind.encode()])
    config = draw_config(family, kind, rng)
    return parity.make(getattr(official, family + kind), config, folder, seed), rng


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_outputs_and_export_of_every_class(family, kind, tmp_path):
    pair, rng = draw_pair(family, kind, 0, tmp_path / "official")
    tokens = parity.draw(rng, pair)
    kinds = pair.config.num_sentence_types
    parity.check_encoder(pair, tokens, rng.integers(0, kinds, tokens.ids.shape) if kinds else None)
    parity.check_export(pair, tmp_path)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(("family", "kind"), [*((f, "ForMaskedLM") for f in CLASSES), ("Electra", "ForPreTraining")])
def test_outputs_and_export_of_random_configs(family, kind, seed, tmp_path):
    """Together with the one above, five of each; of ELECTRA five of both parts."""
    pair, rng = draw_pair(family, kind, seed, tmp_path / "official")
    parity.check_encoder(pair, parity.draw(rng, pair))
    parity.check_export(pair, tmp_path)
    if seed == 1:
        parity.check_files(pair, tmp_path)


def test_names_of_labels_and_unknown_fields_are_kept(tmp_path):
    config = official.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=20,
        id2label={0: "left", 1: "right", 2: "neither"},
        classifier_dropout=0.3,
    )
    pair = parity.make(official.BertForSequenceClassification, config, tmp_path / "official")
    original = json.loads((tmp_path / "official" / "config.json").read_text("utf-8"))
    write_model(tmp_path / "ours", pair.config, pair.params, original=original)
    opened = official.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert opened.config.id2label == config.id2label
    assert opened.config.classifier_dropout == 0.3


def test_old_files_call_scale_and_bias_gamma_and_beta(tmp_path):
    from safetensors.numpy import load_file, save_file

    pair, _ = draw_pair("Bert", "ForMaskedLM", 0, tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(renamed | {"bert.embeddings.position_ids": np.arange(20)[None]}, file)
    config, params = read_model(tmp_path)
    assert config == pair.config
    jax.tree.map(np.testing.assert_array_equal, params, pair.params)
