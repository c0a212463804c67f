"""Word vectors near each other, on a plane, and heads that continue what has been there before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from eval.interpret.reading import call
from model.taps import capture
from train.config import UserError
from train.run import Run


def neighbours(run: Run, word: str, k: int = 10) -> list[tuple[str, float]]:
    """The k words whose rows of the embedding table have the greatest cosine with that of `word`, and the cosines.

    Raises UserError where the word is several tokens.
    """
    ids = run.tokenizer.encode(word).tolist()
    if len(ids) != 1:
        raise UserError(f"{word!r} is {len(ids)} tokens ({' '.join(run.tokenizer.pieces(ids))}); expected one")
    table = _table(run)
    cosines = table @ table[ids[0]]
    cosines[[*run.tokenizer.special_ids, ids[0]]] = -np.inf
    best = np.argsort(-cosines[: run.tokenizer.vocab_size])[:k]
    return [(piece, float(cosines[i])) for piece, i in zip(run.tokenizer.pieces(best), best, strict=True)]


def flat_map(
    run: Run, words: Sequence[str], method: Literal["pca", "tsne"] = "pca", seed: int = 0
) -> Float[np.ndarray, "words 2"]:
    """Where the words lie on a plane: the two directions of greatest variance, or t-SNE (van der Maaten 2008).

    A word of several tokens is at their mean.
    """
    table = _table(run)
    points = np.stack([table[run.tokenizer.encode(word)].mean(axis=0) for word in words])
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise UserError("t-SNE needs scikit-learn: pip install 'quire[eval]'") from None
        return TSNE(perplexity=min(30, (len(words) - 1) / 3), random_state=seed).fit_transform(points)
    centered = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    return centered @ directions[:2].T


def _table(run: Run) -> Float[np.ndarray, "vocab width"]:
    """The rows of the embedding table at length 1."""
    table = np.array(run.params["token_embedding"]["embedding"], np.float32)
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)


def induction_scores(
    run: Run, *, tokens: Sequence[int] | None = None, length: int = 24, rows: int = 8, seed: int = 0
) -> Float[np.ndarray, "layers heads"]:
    """How much each head of a decoder attends to what came after the token's last occurrence (Olsson et al. 2022).

    On random tokens, each row twice in a row: the mean attention from a token of the second half to the one behind the
    same token in the first. 1 is a perfect induction head. `tokens`: those drawn from, by default the vocabulary; what
    a run was never trained on says little.
    """
    config, tokenizer = run.config.model, run.tokenizer
    if config.stack != "decoder":
        raise UserError(f"{run.directory} is no decoder, so it has no induction heads")
    length = min(length, (config.max_length - 1) // 2)
    if tokens is None:
        tokens = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))
    random = np.random.default_rng(seed)
    half = np.stack([random.choice(tokens, length, replace=len(tokens) < length) for _ in range(rows)])
    inputs = np.concatenate([np.full((rows, 1), tokenizer.bos_id), half, half], axis=1).astype(np.int32)

    @jax.jit
    def maps(params):
        with capture("decoder/layers/*/self_attention/probabilities") as taps:
            call(run, params, {"tokens": inputs})
        return dict(taps)

    found = maps(run.params)
    weights = np.stack(
        [np.asarray(found[f"decoder/layers/{i}/self_attention/probabilities"]) for i in range(len(found))]
    )
    second = np.arange(length + 1, 2 * length + 1)
    return weights[:, :, :, second, second - length + 1].mean(axis=(1, 3))
