"""What our models compute from tokens of unequal length, and what a folder of tensors holds; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import deserialize

from model import decoding
from model.config import TransformerConfig
from model.decoding import Sampling
from model.taps import capture
from model.transformer import transformer


@dataclass(frozen=True)
class Tokens:
    """Rows of unequal length, padded on the right; `is_real` [batch, length] marks the rest."""

    ids: np.ndarray
    is_real: np.ndarray

    @property
    def segment_ids(self) -> np.ndarray:
        return self.is_real.astype(np.int32)

    @property
    def lengths(self) -> np.ndarray:
        return self.is_real.sum(axis=1).astype(np.int32)


@partial(jax.jit, static_argnums=0)
def apply(model, params: dict[str, Any], *inputs: jax.Array, **named: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
    """The model's output, and of "encoder" and "decoder" all layers' states [layers, batch, length, embed]."""
    with capture("*/layers/*/output") as taps:
        outputs = model.apply({"params": params}, *inputs, **named)
    stacks = {address.split("/")[0] for address in taps}
    return outputs, {stack: taps.stack(f"{stack}/layers/*/output") for stack in stacks}


def greedy(
    config: TransformerConfig, params: dict[str, Any], prompts: Tokens, source: Tokens | None, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most likely tokens [batch, num_steps] after each prompt, and the logits [batch, num_steps, vocab] of each.

    Rows stand side by side in the cache; none ends early. `source` is what an encoder reads.
    """
    model, batch = transformer(config), len(prompts.ids)
    keys = jax.vmap(jax.random.key)(jnp.arange(batch))
    capacity = prompts.ids.shape[1] + num_steps
    if source is None:
        state = decoding.start(config, keys, capacity)
        state = decoding.read(model, params, state, prompts.ids, prompts.lengths)
    else:
        state = decoding.start(config, keys, capacity, source_length=source.ids.shape[1])
        state = decoding.read(
            model, params, state, prompts.ids, prompts.lengths, source=source.ids, source_lengths=source.lengths
        )
    allowed, sampling = np.ones(config.vocab_size, bool), Sampling(temperature=0)
    tokens, logits = [], []
    for _ in range(num_steps):
        logits.append(np.asarray(state.logits))
        state, written = decoding.decode(
            model, params, state, allowed, num_steps=1, eos_id=config.vocab_size, sampling=sampling
        )
        tokens.append(np.asarray(written))
    return np.concatenate(tokens, axis=1), np.stack(logits, axis=1)


def contents(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensor name → (type, shape, bytes), over all safetensors files of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no tensors in {folder}"
    parts = (part for file in files for part in deserialize(file.read_bytes()))
    return {name: (part["dtype"], tuple(part["shape"]), bytes(part["data"])) for name, part in parts}
