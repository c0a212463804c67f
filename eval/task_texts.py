"""What a model writes for the records of a task: a text for each source, or the reply to a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data import dialogue
from data.examples import Examples
from data.records import Record
from data.task_encoding import Row, target_tokenizer
from data.tokenizer import Tokenizer
from eval.batch_decoding import Hypothesis, Prompt, decode_all
from eval.completion import allowed_tokens, token_of
from eval.predictions import question
from eval.source_reader import task_prompt
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
    prompts = [task_prompt(experiment, examples, examples.row(number)["sources"].tolist()) for number in numbers]
    return _decode(
        experiment,
        model,
        params,
        prompts,
        tokenizer,
        method=method_of(decoding),
        constraints=constraints_of(decoding, tokenizer),
        max_new_tokens=decoding.max_new_tokens or data.target_length or data.length,
        eos_id=tokenizer.eos_id,
        is_prefix=experiment.model.stack == "decoder",
        mesh=mesh,
        batch_size=batch_size,
    )


def method_of(decoding: Decoding) -> BeamSearch | Sampling:
    """Beam search, or the most likely token each time where there is one beam."""
    if decoding.beam_size == 1:
        return Sampling(temperature=0)
    return BeamSearch(decoding.beam_size, decoding.length_penalty, coverage_penalty=decoding.coverage_penalty)


def constraints_of(decoding: Decoding, tokenizer: Tokenizer) -> Constraints:
    """What every text obeys. Raises UserError where the tokenizer lacks its first token."""
    first = None if decoding.first_token is None else token_of(tokenizer, decoding.first_token)
    return Constraints(decoding.no_repeat_ngram, decoding.min_new_tokens, first)


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

    `costs`: example → nats and number of the tokens that are learned. Conversations of which an example is not there
    are left out.
    """
    tokenizer, objective = examples.encoder.tokenizer, experiment.objective
    sums, lacking = np.zeros((len(examples.records), 3)), np.bincount(examples.record_of)
    for number, cost in costs.items():
        sums[examples.record_of[number]] += (*cost, _num_words(examples.row(number), tokenizer))
        lacking[examples.record_of[number]] -= 1
    records = [examples.records[i] for i in np.flatnonzero(lacking == 0)]
    made = [
        question(record, objective) | {"nats": nats, "tokens": int(tokens), "words": int(count)}
        for record, (nats, tokens, count) in zip(records, sums[lacking == 0].tolist(), strict=True)
    ]
    if experiment.evaluation.sample_tokens:
        chosen = records[:_MOST_REPLIES]
        replies = _replies(experiment, model, params, chosen, tokenizer, mesh=mesh, batch_size=batch_size)
        for prediction, reply in zip(made, replies, strict=False):
            prediction["predicted"] = reply
    return made


def _num_words(row: Row, tokenizer: Tokenizer) -> int:
    """Words of the texts that are learned, as far as they were not cut."""
    is_learned = row["learned"].astype(bool)
    parts = np.split(row["tokens"], np.flatnonzero(np.diff(is_learned)) + 1)
    learned = parts[0 if is_learned[0] else 1 :: 2]
    return sum(len(words(tokenizer.decode(part))) for part in learned)


def _replies(
    experiment: Experiment, model: Model, params: Any, records: Sequence[Record], tokenizer: Tokenizer, **options: Any
) -> list[str]:
    """What the assistant could have said last in each conversation."""
    evaluation, limit = experiment.evaluation, experiment.model.max_length
    prompts: list[Prompt] = []
    for record in records:
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
        **options,
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
