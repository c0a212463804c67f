"""What each layer would answer: its hidden states, read by the model's own last norm and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from eval.interpret.reading import Reading, call, tapped
from model.taps import capture, replace
from train.config import UserError
from train.run import Run

Translators = Mapping[str, tuple[Float[Array, "embed embed"], Float[Array, "embed"]]]


@dataclass(frozen=True)
class Lens:
    """The distribution over words that each layer's hidden states come to; the last one is the model's.

    addresses: of the layers. log_probabilities: float32 [layers, length, vocab].
    """

    pieces: tuple[str, ...]
    addresses: tuple[str, ...]
    log_probabilities: Float[np.ndarray, "layers length vocab"]

    def top(self, run: Run, k: int = 1) -> list[list[list[str]]]:
        """The k most likely words of each layer at each place."""
        best = np.argsort(-self.log_probabilities, axis=-1)[..., :k]
        return [[run.tokenizer.pieces(place) for place in layer] for layer in best]

    def divergence(self) -> Float[np.ndarray, "layers length"]:
        """KL(model ‖ layer) in nats."""
        final = self.log_probabilities[-1]
        return (np.exp(final) * (final - self.log_probabilities)).sum(axis=-1)


def logit_lens(run: Run, reading: Reading) -> Lens:
    """Each layer's hidden states as if they were the last (nostalgebraist 2020)."""
    return tuned_lens(run, reading, {})


def tuned_lens(run: Run, reading: Reading, translators: Translators) -> Lens:
    """The same after an affine map of each layer's own (Belrose et al. 2023), from `train_tuned_lens`."""
    _check(run)
    states = _states(run, reading)
    last = list(states)[-1]
    found = []
    for address, state in states.items():
        if address in translators:
            weight, bias = translators[address]
            state = state + state @ weight + bias
        found.append(jax.nn.log_softmax(_read_as_last(run, reading, last, state).astype(jnp.float32))[0])
    return Lens(reading.pieces, tuple(states), np.stack(found))


def train_tuned_lens(
    run: Run, readings: Sequence[Reading], *, steps: int = 100, learning_rate: float = 1e-3, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A map for each layer but the last, so that it answers as the model does: KL(model ‖ layer) by Adam.

    They start as nothing, so that the tuned lens starts as the logit lens.
    """
    _check(run)
    states = [_states(run, reading) for reading in readings]
    *addresses, last = states[0]
    embed = states[0][last].shape[-1]
    translators = {address: (jnp.zeros((embed, embed)), jnp.zeros(embed)) for address in addresses}
    optimizer = optax.adam(learning_rate)
    opt_state = optimizer.init(translators)

    def divergence(translators, inputs, state, final):
        total = 0.0
        for address, (weight, bias) in translators.items():
            with capture(patch={last: replace(state[address] + state[address] @ weight + bias)}):
                logits = call(run, run.params, inputs)["lm"]
            own = jax.nn.log_softmax(logits.astype(jnp.float32))
            total += (jnp.exp(final) * (final - own)).sum(axis=-1).mean()
        return total

    @jax.jit
    def update(translators, opt_state, inputs, state, final):
        grads = jax.grad(divergence)(translators, inputs, state, final)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(translators, updates), opt_state

    order = np.random.default_rng(seed).integers(len(readings), size=steps)
    for number in order:
        inputs, state = dict(readings[number].inputs), states[number]
        final = jax.nn.log_softmax(call(run, run.params, inputs)["lm"].astype(jnp.float32))
        translators, opt_state = update(translators, opt_state, inputs, state, final)
    return jax.tree.map(np.asarray, translators)


def _check(run: Run) -> None:
    config = run.config.model
    if config.stack == "encoder" and "lm" not in config.heads:
        raise UserError(f"{run.directory} has no head for words, so its layers cannot be read as words")
    if config.share_encoder_decoder:
        raise UserError(f"{run.directory} has one stack that is both encoder and decoder; its layers are read twice")


def _states(run: Run, reading: Reading) -> dict[str, Array]:
    return tapped(run, reading, f"{reading.stack}/layers/*/output")[1]


def _read_as_last(run: Run, reading: Reading, last: str, state: Array) -> Array:
    """The model's logits if this were what its last layer gives."""
    return tapped(run, reading, replaced={last: state})[0]["lm"]
