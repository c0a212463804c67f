"""What is learned: from an experiment to its model, the model's inputs, and the terms of its loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data.config import ReplacedTokens
from data.task_config import Classification, Regression, SpanAnswering, Tagging
from data.tokenizer import Tokenizer
from model.transformer import Decoder, Encoder, EncoderDecoder, ReplacedTokenDetector, transformer
from train import losses
from train.command_line import load_loss
from train.config import Experiment, UserError

Batch = dict[str, Array]
Model = Decoder | Encoder | EncoderDecoder | ReplacedTokenDetector


class Term(NamedTuple):
    """One part of a loss over a batch: its sum, the sum of its weights, and the weight of what was predicted right.

    `correct` is None where nothing is right or wrong.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    correct: Float[Array, ""] | None


_HEADS = {Classification: "sequence", Regression: "sequence", Tagging: "tokens", SpanAnswering: "span"}


def main_term(experiment: Experiment) -> str:
    """The term of the loss that a batch's `targets` are for, named after the head that predicts them."""
    return _HEADS.get(type(experiment.objective), "lm")


def make_model(experiment: Experiment) -> Model:
    """The network of an experiment: that of its config, or for replaced tokens ELECTRA's pair."""
    if isinstance(experiment.objective, ReplacedTokens):
        return ReplacedTokenDetector(experiment.model, experiment.objective.generator_fraction)
    return transformer(experiment.model)


def check_heads(experiment: Experiment) -> None:
    """Raise UserError unless an encoder has the heads that its objective trains; an imported one may lack them."""
    objective, heads = experiment.objective, experiment.model.heads
    if experiment.model.stack != "encoder":
        return
    needed = ("detection",) if isinstance(objective, ReplacedTokens) else (main_term(experiment),)
    if getattr(objective, "sentence_pairs", "none") != "none":
        needed += ("sentence_pair",)
    if set(needed) - set(heads) or (isinstance(objective, ReplacedTokens) and heads != needed):
        raise UserError(
            f"model.heads: objective.kind={objective.kind} trains {list(needed)}, the model has {list(heads)}"
        )


def check_vocabulary(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raise UserError unless the model has a row for every token, those of the objective among them."""
    size = tokenizer.vocab_size
    if size > experiment.model.vocab_size:
        raise UserError(
            f"model.vocab_size: the tokenizer has {size} tokens, the model only {experiment.model.vocab_size}; "
            f"set --model.vocab-size {size} or more"
        )


def example_options(experiment: Experiment) -> dict[str, Any]:
    """How the data pipeline makes the experiment's examples: arguments of `train_batches` and `eval_batches`."""
    return dict(
        length=experiment.data.length,
        attend_across_documents=experiment.data.attend_across_documents,
        objective=experiment.objective,
        stack=experiment.model.stack,
        target_length=experiment.data.target_length,
        decoder_start_id=experiment.model.decoder_start_id,
    )


# Batch key → argument of the model.
_ARGUMENTS = {
    "inputs": "tokens",
    "positions": "positions",
    "segment_ids": "segment_ids",
    "prefix": "prefix",
    "sentence_ids": "sentence_ids",
    "encoder_inputs": "encoder_tokens",
    "encoder_positions": "encoder_positions",
    "encoder_segment_ids": "encoder_segment_ids",
    "decoder_inputs": "tokens",
    "decoder_positions": "positions",
    "decoder_segment_ids": "segment_ids",
}


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Array]:
    """The arguments of the model that a batch holds."""
    inputs = {argument: batch[name] for name, argument in _ARGUMENTS.items() if name in batch}
    if isinstance(model, ReplacedTokenDetector):
        inputs |= {name: batch[name] for name in ("targets", "weights")}
    return inputs


def coefficients(experiment: Experiment) -> dict[str, float]:
    """Term → its factor in the loss. A batch has some of these terms."""
    config, objective = experiment.model, experiment.objective
    detection = objective.discriminator_weight if isinstance(objective, ReplacedTokens) else 1.0
    return {
        "lm": 1.0,
        "sequence": 1.0,
        "tokens": 1.0,
        "span": 1.0,
        "sentence_pair": 1.0,
        "detection": detection,
        "load_balance": config.load_balance_weight,
        "router_z": config.router_z_weight,
    }


def num_tokens(batch: Batch) -> Float[Array, ""]:
    """Tokens that the model reads, padding not counted."""
    segments = [array for name, array in batch.items() if name.endswith("segment_ids")]
    counts = [(array > 0).sum(dtype=jnp.float32) for array in segments]
    return sum(counts) if counts else batch["weights"].sum()


def term_weights(experiment: Experiment, batch: Batch) -> dict[str, Float[Array, ""]]:
    """Term → the sum of its weights over a batch. They do not depend on the parameters."""
    weights = {main_term(experiment): batch["decoder_weights" if "decoder_weights" in batch else "weights"].sum()}
    if "sentence_weights" in batch:
        weights["sentence_pair"] = batch["sentence_weights"].sum()
    if isinstance(experiment.objective, ReplacedTokens):
        weights["detection"] = num_tokens(batch)
    if experiment.model.num_experts:
        # Already means over the tokens of a part; the parts of an accumulated batch count by their rows.
        rows = jnp.float32(next(iter(batch.values())).shape[0])
        weights |= {"load_balance": rows, "router_z": rows}
    return weights


def loss_terms(
    experiment: Experiment,
    model: nn.Module,
    params: Any,
    batch: Batch,
    key: Array | None,
    *,
    smooth: bool = True,
) -> dict[str, Term]:
    """The terms of the loss over a batch. With a `key` the model drops out; None is for evaluation.

    `smooth`: with the experiment's label smoothing and z-loss, or its own function.
    """
    deterministic = key is None
    key = jax.random.key(0) if deterministic else key  # a generator samples in evaluation, too, but always alike
    rngs = {"dropout": key, "sample": jax.random.fold_in(key, 1)}
    inputs = model_inputs(model, batch) | {"deterministic": deterministic}
    outputs, collections = model.apply({"params": params}, **inputs, rngs=rngs, mutable=["losses"])
    outputs = outputs if isinstance(outputs, dict) else {"lm": outputs}
    main = main_term(experiment)
    terms = {main: _main(experiment, outputs[main], batch, smooth)}
    if "sentence_targets" in batch:
        pair = outputs["sentence_pair"][:, None]
        answers, counted = batch["sentence_targets"][:, None], batch["sentence_weights"][:, None]
        terms["sentence_pair"] = _classified(pair, answers, counted)
    if isinstance(model, ReplacedTokenDetector):
        is_real = (batch["segment_ids"] > 0).astype(jnp.float32)
        loss, weight = losses.binary_cross_entropy(outputs["detection"], outputs["replaced"], is_real)
        right = (outputs["detection"] > 0) == outputs["replaced"]
        terms["detection"] = Term(loss, weight, (right * is_real).sum())
    rows = jnp.float32(next(iter(batch.values())).shape[0])
    for path, value in jax.tree_util.tree_leaves_with_path(collections.get("losses", {})):
        terms[path[-1].key] = Term(value.mean() * rows, rows, None)  # the mean over layers
    return terms


def _main(experiment: Experiment, output: Array, batch: Batch, smooth: bool) -> Term:
    """The term of the batch's `targets`, from the output of its head."""
    prefix = "decoder_" if "decoder_targets" in batch else ""
    targets, weights = batch[prefix + "targets"], batch[prefix + "weights"]
    options = (experiment.loss.label_smoothing, experiment.loss.z_loss) if smooth else ()
    match experiment.objective:
        case Classification():
            term = _classified(output[:, None], targets[:, None], weights[:, None], *options)
        case Regression():
            output = output[:, 0]
            term = Term(*losses.squared_error(output, targets, weights), None)
        case SpanAnswering():
            term = _answered(output, targets, weights, batch["segment_ids"] > 0, *options)
        case _:
            term = _classified(output, targets, weights, *options)
    if smooth and experiment.loss.function:
        loss = load_loss(experiment.loss.function)(output.astype(jnp.float32), targets)
        if jnp.shape(loss) != targets.shape:
            raise UserError(
                f"loss.function: {experiment.loss.function} gives {jnp.shape(loss)} for targets {targets.shape}; "
                "expected the loss of each target"
            )
        term = term._replace(loss=(loss * weights).sum())
    return term


def _classified(logits: Array, targets: Array, weights: Array, *options: float) -> Term:
    right = logits.argmax(axis=-1) == targets
    return Term(*losses.cross_entropy(logits, targets, weights, *options), (right * weights).sum())


def _answered(logits: Array, targets: Array, weights: Array, is_real: Array, *options: float) -> Term:
    """Mean of the cross entropies of the first and the last token, each among all tokens of its row.

    Devlin et al. (2019), section 4.2. Right is a row with both places right. `logits` [batch, length, 2], `targets`
    [batch, 2], `weights` [batch], `is_real` [batch, length].
    """
    logits, allowed = logits.swapaxes(1, 2), is_real[:, None]
    halves = jnp.broadcast_to(weights[:, None] / 2, targets.shape)
    right = (jnp.where(allowed, logits, -jnp.inf).argmax(axis=-1) == targets).all(axis=-1)
    loss, weight = losses.cross_entropy(logits, targets, halves, *options, allowed=allowed)
    return Term(loss, weight, (right * weights).sum())
