"""Recorded official models give the recorded numbers, and go out again as they came; see record.py."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ours import Tokens, apply, contents, greedy

from model.pretrained import fitting_family, read_model, write_model
from model.transformer import transformer

TOLERANCE = 1e-4
FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "fixtures").glob("*/config.json"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


def assert_close(ours, expected, is_real: np.ndarray) -> None:
    """Over the real tokens, where there is one output for each."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    if ours.shape[:2] == is_real.shape:
        ours, expected = ours[is_real], expected[is_real]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def assert_layers_close(ours: jax.Array, expected: np.ndarray, is_real: np.ndarray) -> None:
    assert len(ours) - len(expected) in (0, 1)  # the last layer's is not recorded where a final norm follows
    for one, other in zip(ours, expected, strict=False):
        assert_close(one, other, is_real)


def test_numbers_are_the_recorded_ones(folder):
    config, params = read_model(folder)
    expected = np.load(folder / "expected.npz")
    tokens = Tokens(expected["tokens"], expected["is_real"])
    model, source = transformer(config), None
    match config.stack:
        case "encoder":
            outputs, hidden = apply(model, params, tokens.ids, segment_ids=tokens.segment_ids)
            for head in config.heads:
                assert_close(outputs[head], expected[head], tokens.is_real)
        case "decoder":
            outputs, hidden = apply(model, params, tokens.ids)
        case "encoder_decoder":
            source = Tokens(expected["source"], expected["source_is_real"])
            outputs, hidden = apply(model, params, source.ids, tokens.ids, encoder_segment_ids=source.segment_ids)
            assert_layers_close(hidden["encoder"], expected["encoder_hidden_states"], source.is_real)
    stack = "encoder" if config.stack == "encoder" else "decoder"
    assert_layers_close(hidden[stack], expected["hidden_states"], tokens.is_real)
    if config.stack == "encoder":
        return
    assert_close(outputs, expected["logits"], tokens.is_real)
    prompts = Tokens(expected["prompts"], expected["is_prompt"])
    written, _ = greedy(config, params, prompts, source, expected["written"].shape[1])
    np.testing.assert_array_equal(written, expected["written"])


def test_export_gives_the_same_bytes_and_fields(folder, tmp_path):
    config, params = read_model(folder)
    original = json.loads((folder / "config.json").read_text("utf-8"))
    write_model(tmp_path, config, params, original=original)
    assert contents(tmp_path) == contents(folder)
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert {name: written[name] for name in original} == original


def test_export_finds_a_family_that_means_the_same(folder, tmp_path):
    """Without being told which; several may have the same model."""
    config, params = read_model(folder)
    write_model(tmp_path, config, params)
    _, same = read_model(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["model_type"] == fitting_family(config).model_type
    jax.tree.map(np.testing.assert_array_equal, same, params)
