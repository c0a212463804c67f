"""A text as a run's model reads it, and what of its output is explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from data.task_encoding import TaskEncoder, target_tokenizer
from eval.source_reader import SourceReader, reads_sources
from model.taps import capture, replace
from model.transformer import Decoder, Encoder, EncoderDecoder
from train.config import UserError
from train.objective import Model
from train.run import Run


@dataclass(frozen=True)
class Reading:
    """One row of a model's input.

    pieces: the names of the tokens; of an encoder–decoder, those that its decoder reads.
    source: the names of the tokens that an encoder–decoder's encoder reads; else empty.
    inputs: arguments of the model, arrays [1, length].
    """

    pieces: tuple[str, ...]
    source: tuple[str, ...]
    inputs: Mapping[str, np.ndarray]

    @property
    def stack(self) -> str:
        """The part of the model that reads the pieces."""
        return "encoder" if "sentence_ids" in self.inputs else "decoder"


def read(run: Run, text: str, second: str | None = None) -> Reading:
    """The text with what stands around it in training: bos, or an encoder's template.

    `second`: another sentence that an encoder reads after it, or what an encoder–decoder, or a decoder of texts from
    texts, has written so far.
    Raises UserError where the text is longer than the model's context, or there is nothing to read a second one.
    """
    model, tokenizer = run.model, run.tokenizer
    if not isinstance(model, Decoder | Encoder | EncoderDecoder):
        raise UserError(
            f"{run.directory} learned {run.config.objective.kind}: export its discriminator and import that"
        )
    source: Sequence[int] = ()
    inputs: dict[str, Any] = {}
    if isinstance(model, Encoder):
        encoder = TaskEncoder(run.config.objective, tokenizer, "encoder", run.config.model.max_length)
        first, other = (None if part is None else tokenizer.encode(part).tolist() for part in (text, second))
        if other is None:
            ids = encoder.template.around(first)
            inputs["sentence_ids"] = np.zeros_like(ids)
        else:
            row = encoder.template.pair(first, other)
            ids, inputs["sentence_ids"] = row["inputs"], row["sentence_ids"]
        inputs["segment_ids"] = np.ones_like(ids)
    elif reads_sources(run):
        reader = SourceReader(run)
        before, ids = reader.prompt(reader.encode(text))
        source = before or ()
        written = [] if second is None else target_tokenizer(tokenizer).encode(second).tolist()
        ids = np.array([*ids, *written], np.int32)
        if before is not None:
            inputs["encoder_tokens"] = np.array(before, np.int32)
        elif run.reads_prefixes:
            inputs["prefix"] = np.arange(len(ids)) < len(ids) - len(written)
    else:
        if second is not None:
            raise UserError(f"{run.directory} reads one text; leave the second one out")
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(text)], np.int32)
    inputs["tokens"] = ids
    if (longest := max(map(len, inputs.values()))) > run.config.model.max_length:
        raise UserError(f"the text has {longest} tokens, more than the {run.config.model.max_length} of the model")
    pieces = (tuple(tokenizer.pieces(part)) for part in (ids, source))
    return Reading(*pieces, {name: np.asarray(value)[None] for name, value in inputs.items()})


def call(run: Run, params: Any, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """The model's outputs by head; a language model's are `lm`."""
    return _by_head(run.model.apply({"params": params}, **inputs))


def _by_head(outputs: Any) -> dict[str, Array]:
    return outputs if isinstance(outputs, dict) else {"lm": outputs}


def tapped(
    run: Run, reading: Reading, *patterns: str, replaced: Mapping[str, Array] | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Outputs by head, and activations by address, with others in the place of some.

    Compiled once for readings of one length.
    """
    return _tapped(run.model, run.params, dict(reading.inputs), dict(replaced or {}), patterns)


@partial(jax.jit, static_argnames=("model", "patterns"))
def _tapped(model: Model, params: Any, inputs: dict[str, Array], replaced: dict[str, Array], patterns: tuple[str, ...]):
    with capture(*patterns, patch={address: replace(value) for address, value in replaced.items()}) as taps:
        outputs = model.apply({"params": params}, **inputs)
    return _by_head(outputs), dict(taps)


@dataclass(frozen=True)
class Target:
    """One logit of the output.

    head: `lm`, `sequence`, `tokens`, `span` or another of the model's. output: the number of the word or label.
    place: of the token, for heads that have an output at each; -1 is the last.
    """

    head: str
    output: int
    place: int = -1

    def of(self, outputs: Mapping[str, Array]) -> Float[Array, "rows"]:
        """The logit of every row."""
        logits = outputs[self.head]
        return logits[:, self.place, self.output] if logits.ndim == 3 else logits[:, self.output]


def target_of(run: Run, reading: Reading, target: Target | None) -> Target:
    """The target, or where there is none the model's own answer at the end of the text."""
    if target is not None:
        return target
    outputs = call(run, run.params, reading.inputs)
    head = next((name for name in outputs if name not in ("hidden", "pooled")), None)
    if head is None:
        raise UserError(f"{run.directory} has no head, so it answers nothing; name one in model.heads and fine-tune it")
    logits = outputs[head][0]
    return Target(head, int((logits[-1] if logits.ndim == 2 else logits).argmax()))


def told(run: Run, target: Target) -> str:
    """The target's name: a word, or a label."""
    objective = run.config.objective
    if target.head == "lm":
        return repr(run.tokenizer.pieces([target.output])[0])
    names = getattr(objective, "names", ()) or getattr(objective, "labels", ())
    return names[target.output] if target.head == "sequence" and names else f"{target.head} {target.output}"
