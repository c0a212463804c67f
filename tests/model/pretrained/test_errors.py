"""A folder that cannot be imported, or a model that cannot be exported, is answered with one sentence that says why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.config import TransformerConfig
from model.pretrained import read_model, write_model
from model.pretrained.names import PretrainedError

BERT = Path(__file__).parent / "fixtures" / "bert"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the recorded BERT, to spoil."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(BERT / name, tmp_path / name)
    return tmp_path


def refusal(folder: Path) -> str:
    """The sentence with which the folder is refused."""
    with pytest.raises(PretrainedError) as refused:
        read_model(folder)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def change_tensors(folder: Path, changes: dict[str, np.ndarray | None]) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


def change_config(folder: Path, **changes) -> None:
    official = json.loads((folder / "config.json").read_text("utf-8")) | changes
    kept = {name: value for name, value in official.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept), "utf-8")


def test_a_missing_tensor(folder):
    change_tensors(folder, {QUERY: None})
    assert refusal(folder) == f"tensor {QUERY} is missing"


def test_an_unknown_tensor(folder):
    change_tensors(folder, {"bert.adapter.weight": np.zeros((2, 2), np.float32)})
    assert refusal(folder) == "tensor bert.adapter.weight is not known in this model"


def test_a_wrong_shape(folder):
    change_tensors(folder, {QUERY: np.zeros((16, 12), np.float32)})
    assert refusal(folder) == f"tensor {QUERY} has shape [16, 12], the config asks for [16, 16]"


def test_many_problems_are_counted(folder):
    change_config(folder, hidden_size=20)
    sentence = refusal(folder)
    assert "bert.embeddings.word_embeddings.weight has shape [40, 16], the config asks for [40, 20]" in sentence
    assert sentence.count("has shape") == 5 and "more" in sentence


def test_a_copy_that_differs_from_the_tensor_it_is_tied_to(folder):
    name = "cls.predictions.decoder.weight"
    change_tensors(folder, {name: np.zeros((40, 16), np.float32)})
    assert refusal(folder).startswith(f"tensor {name} differs from bert.embeddings.word_embeddings.weight")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(model_type="xlnet"), "model_type 'xlnet' is not supported; supported are gpt2"),
        (dict(model_type=...), "model_type"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key' is not supported"),
        (dict(is_decoder=True), "is_decoder=True is not supported, only False"),
        (dict(pruned_heads={"0": [1]}), "pruned_heads={'0': [1]} is not supported"),
        (dict(hidden_act="quick_gelu"), "activation 'quick_gelu' is not supported, only relu, gelu"),
        (dict(hidden_size=...), "config.json has no field 'hidden_size'"),
        (dict(num_attention_heads=3), "num_heads=3 does not divide embed_dim=16"),
        (dict(num_hidden_layers="two"), "num_layers: Input should be a valid integer"),
        (dict(id2label=3), "config.json describes a model that is not supported"),
    ],
)
def test_a_config_that_we_cannot_compute(folder, changes, named):
    change_config(folder, **changes)
    assert named in refusal(folder)


def test_a_classifier_of_no_known_class(folder):
    spoiled = {"classifier.weight": np.zeros((2, 16), np.float32), "classifier.bias": np.zeros(2, np.float32)}
    change_tensors(folder, spoiled)
    change_config(folder, architectures=["BertForRanking"])
    assert "architectures=['BertForRanking'] does not say what the tensor classifier labels" in refusal(folder)


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text("{", "utf-8")
    assert "config.json is not readable JSON" in refusal(folder)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has pytorch_model.bin but no model.safetensors: only safetensors are read" in refusal(folder)


def test_a_folder_without_tensors(folder):
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize("size", [4, 1000, -100])
def test_a_truncated_file(folder, size):
    """Within the length of its header, within the header, within the tensors."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "model.safetensors is not a readable safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "absent.safetensors"])
def test_an_index_that_names_a_file_outside_the_folder(folder, name):
    inside = folder / "inside"
    inside.mkdir()
    (folder / "model.safetensors").rename(folder / "outside.safetensors")
    shutil.copyfile(folder / "config.json", inside / "config.json")
    index = {"weight_map": {QUERY: name}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    sentence = refusal(inside)
    assert f"index.json names {name}, which is not in the folder" in sentence


@pytest.mark.parametrize("weight_map", [None, [QUERY], {QUERY: 7}])
def test_an_index_that_is_none(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    assert "index.json has no weight_map from tensors to the names of files" in refusal(folder)


def test_numbers_of_a_type_that_is_not_read(folder):
    change_tensors(folder, {QUERY: np.zeros((16, 16), np.int8)})
    assert refusal(folder) == "tensors are stored as I8; only float32, bfloat16, float16 are read"


def test_export_names_the_field_that_a_family_lacks(folder):
    config = TransformerConfig(vocab_size=40, num_layers=1, embed_dim=16, num_heads=2, positions="alibi")
    with pytest.raises(PretrainedError, match="^no published family has a model with this config .*gpt2: positions="):
        write_model(folder / "out", config, {})
    config, params = read_model(folder)
    scaled = config.model_copy(update=dict(scale_embeddings=True))
    with pytest.raises(PretrainedError, match="^scale_embeddings=True, where the family has False$"):
        write_model(folder / "out", scaled, params, family="bert")
    pre = config.model_copy(update=dict(norm_placement="pre"))
    with pytest.raises(PretrainedError, match="^no published name for encoder/final_norm/bias"):
        write_model(folder / "out", pre, params, family="bert")
    assert not (folder / "out").exists()
