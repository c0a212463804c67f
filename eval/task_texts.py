"""What a model writes for the records of a task: a text for each source, or the reply to a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data import dialogue
from data.examples import Examples
from data.task_batches import TaskBatchMaker
from data.task_encoding import Row, target_tokenizer
from data.tokenizer import Tokenizer
from eval.batch_decoding import Hypothesis, Prompt, decode_all
from eval.completion import allowed_tokens
from eval.predictions import question
from eval.task_measures import Prediction, words
from model.beam_search import BeamSearch
from model.decoding import Constraints, Sampling
from train import sharding
from train.config import Decoding, Experiment
from train.objective import Model

_MOST_REPLIES = 100  # conversations of which a reply is sampled


def texts(
    experiment: Experiment,
    model: Model,
    params: Any,
    examples: Examples,
    numbers: Sequence[int],
    decoding: Decoding,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> list[Prediction]:
    """A text for the source of each of the examples `numbers`; one that `words` names is the label it stands for."""
    objective = experiment.objective
    written = decode(experiment, model, params, examples, numbers, decoding, mesh=mesh, batch_size=batch_size)
    labels = {word: label for label, word in objective.words.items()}
    made, tokenizer = [], target_tokenizer(examples.encoder.tokenizer)
    for number, best in zip(numbers, written, strict=True):
        text = tokenizer.decode(best.tokens).strip()
        answer = {"predicted": labels.get(text, text), "score": best.score}
        made.append(question(examples.records[examples.record_of[number]], objective) | answer)
    return made


def decode(
    experiment: Experiment,
    model: Model,
    params: Any,
    examples: Examples,
    numbers: Sequence[int],
    decoding: Decoding,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> list[Hypothesis]:
    """What the model writes after each source, having read what it has read in training."""
    tokenizer, data = examples.encoder.tokenizer, experiment.data
    is_prefix = experiment.model.stack == "decoder"
    before = TaskBatchMaker(examples, False, decoder_start_id=experiment.model.decoder_start_id).decoder_prompt
    sources = [examples.row(number)["sources"].tolist() for number in numbers]
    prompts: list[Prompt] = [(None, [*source, *before]) if is_prefix else (source, before) for source in sources]
    return _decode(
        experiment,
        model,
        params,
        prompts,
        tokenizer,
        method=method_of(decoding),
        constraints=Constraints(decoding.no_repeat_ngram, decoding.min_new_tokens),
        max_new_tokens=decoding.max_new_tokens or data.target_length or data.length,
        eos_id=tokenizer.eos_id,
        is_prefix=is_prefix,
        mesh=mesh,
        batch_size=batch_size,
    )


def method_of(decoding: Decoding) -> BeamSearch | Sampling:
    """Beam search, or the most likely token each time where there is one beam."""
    if decoding.beam_size == 1:
        return Sampling(temperature=0)
    return BeamSearch(decoding.beam_size, decoding.length_penalty, coverage_penalty=decoding.coverage_penalty)


def conversations(
    experiment: Experiment,
    model: Model,
    params: Any,
    examples: Examples,
    costs: Mapping[int, np.ndarray],
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> list[Prediction]:
    """What the learned turns of each conversation cost, and in the first ones another reply in place of the last.

    `costs`: example → nats and number of the tokens that are learned.
    """
    tokenizer, objective = examples.encoder.tokenizer, experiment.objective
    sums = np.zeros((len(examples.records), 3))
    for number, cost in costs.items():
        sums[examples.record_of[number]] += (*cost, _num_words(examples.row(number), tokenizer))
    made = [
        question(record, objective) | {"nats": nats, "tokens": int(tokens), "words": int(count)}
        for record, (nats, tokens, count) in zip(examples.records, sums.tolist(), strict=True)
    ]
    if experiment.evaluation.sample_tokens:
        for prediction, reply in zip(
            made, _replies(experiment, model, params, examples, mesh, batch_size), strict=False
        ):
            prediction["predicted"] = reply
    return made


def _num_words(row: Row, tokenizer: Tokenizer) -> int:
    """Words of the texts that are learned, as far as they were not cut."""
    is_learned = row["learned"].astype(bool)
    parts = np.split(row["tokens"], np.flatnonzero(np.diff(is_learned)) + 1)
    learned = parts[0 if is_learned[0] else 1 :: 2]
    return sum(len(words(tokenizer.decode(part))) for part in learned)


def _replies(
    experiment: Experiment, model: Model, params: Any, examples: Examples, mesh: jax.sharding.Mesh, batch_size: int
) -> list[str]:
    """What the assistant could have said last in each of the first conversations."""
    tokenizer, evaluation, limit = examples.encoder.tokenizer, experiment.evaluation, experiment.model.max_length
    prompts: list[Prompt] = []
    for record in examples.records[:_MOST_REPLIES]:
        turns, system = dialogue.read_turns(record, experiment.objective)
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        room = max(limit - evaluation.sample_tokens, limit // 2)
        prompts.append((None, dialogue.prompt(turns[:last], system, tokenizer, room).tokens))
    written = _decode(
        experiment,
        model,
        params,
        prompts,
        tokenizer,
        method=Sampling(temperature=evaluation.temperature),
        max_new_tokens=evaluation.sample_tokens,
        eos_id=tokenizer.named[dialogue.END_TOKEN],
        seed=experiment.seed,
        mesh=mesh,
        batch_size=batch_size,
    )
    return [tokenizer.decode(reply.tokens).strip() for reply in written]


def _decode(
    experiment: Experiment,
    model: Model,
    params: Any,
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    eos_id: int,
    mesh: jax.sharding.Mesh,
    **options: Any,
) -> list[Hypothesis]:
    """The best text for each prompt."""
    allowed = allowed_tokens(tokenizer, experiment.model.vocab_size, eos_id)
    if jax.default_backend() == "cpu":
        # There the programs of a search can wait for each other's threads forever, if they have collectives; and the
        # devices have the same cores anyway.
        params = jax.device_put(params, mesh.devices.flat[0])
        where = jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    else:
        where = sharding.use(mesh, experiment.mesh.rules)
    with where:
        written = decode_all(model, params, prompts, eos_id=eos_id, allowed=allowed, **options)
    return [best for best, *_ in written]
