"""The two-way name table between our parameter tree and a published model's tensors.

A family is one ordered tuple of rules. `{layer}` and `{expert}` in an official name stand for the leading `layers`
and `experts` dims of our arrays, so that one rule reads and writes a whole stack:

    Rule("bert.encoder.layer.{layer}.attention.self.query.weight", "encoder/layers/self_attention/query/kernel", LINEAR)

All forms move numbers without changing any, so importing and exporting again gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from model.config import TransformerConfig

Form = Literal["table", "vector", "row", "linear", "conv1d"]
TABLE: Form = "table"  # the same shape
VECTOR: Form = "vector"  # all dims in one
ROW: Form = "row"  # the same as a matrix of one row
LINEAR: Form = "linear"  # [outputs, inputs], torch's nn.Linear
CONV1D: Form = "conv1d"  # [inputs, outputs], GPT-2's Conv1D


ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


class PretrainedError(Exception):
    """A published model that cannot be imported or a run that cannot be exported; one complete sentence."""


@dataclass(frozen=True)
class Rule:
    """One official tensor (or one for each layer and expert) and the leaf of our tree that holds it.

    Several leaves stand for one tensor that holds them side by side along its outputs (GPT-2's query, key, value).
    A rule whose leaves a config does not have is passed over.
    """

    official: str
    ours: str | tuple[str, ...]
    form: Form = TABLE

    @property
    def leaves(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def linear(official: str, ours: str, form: Form = LINEAR) -> tuple[Rule, Rule]:
    """Rules for the weight and the bias of a linear layer."""
    return Rule(f"{official}.weight", f"{ours}/kernel", form), Rule(f"{official}.bias", f"{ours}/bias", VECTOR)


def norm(official: str, ours: str) -> tuple[Rule, Rule]:
    """Rules for the scale and the bias of a norm."""
    return Rule(f"{official}.weight", f"{ours}/scale", VECTOR), Rule(f"{official}.bias", f"{ours}/bias", VECTOR)


@dataclass(frozen=True)
class Family:
    """How one family's folders are read and written.

    model_type: what its config.json says.
    to_config: its config.json and tensor names (without `prefix` and duplicates) → our config. It reads each field
        that changes a number, and raises `PretrainedError` for a value that we cannot compute.
    from_config: our config → its config.json, raising `PretrainedError` where the family has no such model.
    rules: the name table, for a config.
    prefix: of the tensors that a bare model (without head) has without it.
    is_bare: whether an export of this config is such a bare model.
    aliases: second names of tied tensors (patterns) → the first; dropped on reading, not written.
    derived: tensors that follow from the config, such as sinusoids: written where `saves_derived`, not read.
    ignored: patterns of buffers that follow from the config.
    defaults: fields of config.json that no number here depends on, for a model that was not imported.
    """

    model_type: str
    to_config: Callable[[Mapping[str, Any], Collection[str]], TransformerConfig]
    from_config: Callable[[TransformerConfig], dict[str, Any]]
    rules: Callable[[TransformerConfig], Sequence[Rule]]
    prefix: str = ""
    is_bare: Callable[[TransformerConfig], bool] = field(default=lambda config: False)
    aliases: Callable[[TransformerConfig], Mapping[str, str]] = field(default=lambda config: {})
    derived: Callable[[TransformerConfig], Mapping[str, np.ndarray]] = field(default=lambda config: {})
    saves_derived: Callable[[TransformerConfig], bool] = field(default=lambda config: True)
    defaults: Callable[[TransformerConfig], Mapping[str, Any]] = field(default=lambda config: {})
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where one official tensor lies in our tree: leaves side by side, each at `index` of its leading dims."""

    leaves: tuple[str, ...]
    index: tuple[int, ...]
    form: Form
    shape: tuple[int, ...]
    """Of the official tensor."""
    part_shape: tuple[int, ...]
    """Of each leaf at `index`."""

    def to_ours(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        """The part of each leaf."""
        axis = 1 if self.form == CONV1D else 0
        parts = np.split(tensor, len(self.leaves), axis) if len(self.leaves) > 1 else (tensor,)
        return tuple((part.T if self.form == LINEAR else part).reshape(self.part_shape) for part in parts)

    def to_official(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor, from the parts of its leaves."""
        if self.form == LINEAR:
            parts = [part.reshape(self.shape[1], -1).T for part in parts]
        elif self.form == CONV1D:
            parts = [part.reshape(self.shape[0], -1) for part in parts]
        tensor = np.concatenate(parts, 1 if self.form == CONV1D else 0) if len(parts) > 1 else parts[0]
        return np.ascontiguousarray(tensor.reshape(self.shape))


def places(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Official name → place, in the rules' order, for a tree with leaves of `shapes`.

    Raises PretrainedError that names a leaf which no rule reads: then the family cannot hold such a model.
    """
    found: dict[str, Place] = {}
    for rule in rules:
        if not all(leaf in shapes for leaf in rule.leaves):
            continue
        counters = re.findall(r"\{(\w+)\}", rule.official)
        shape = shapes[rule.leaves[0]]
        part_shape = shape[len(counters) :]
        for index in itertools.product(*(range(size) for size in shape[: len(counters)])):
            name = rule.official.format(**dict(zip(counters, index, strict=True)))
            official = _official_shape(rule, part_shape)
            found[name] = Place(rule.leaves, index, rule.form, official, part_shape)
    read = {leaf for place in found.values() for leaf in place.leaves}
    if unread := sorted(set(shapes) - read):
        raise PretrainedError(f"no published name for {', '.join(unread[:5])}" + (" …" if len(unread) > 5 else ""))
    return found


def _official_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    count = len(rule.leaves)
    if rule.form == TABLE:
        return shape
    if rule.form == VECTOR:
        return (count * math.prod(shape),)
    if rule.form == ROW:
        return (1, math.prod(shape))
    num_inputs = 2 if rule.leaves[0].endswith("/out/kernel") else 1  # attention's output reads heads and head_dim
    inputs, outputs = math.prod(shape[:num_inputs]), count * math.prod(shape[num_inputs:])
    return (outputs, inputs) if rule.form == LINEAR else (inputs, outputs)


def by_leaf(placed: Mapping[str, Place]) -> dict[str, list[tuple[str, int]]]:
    """Leaf → the official tensors it is made of, each with the leaf's number in that tensor."""
    made_of: dict[str, list[tuple[str, int]]] = {}
    for name, place in placed.items():
        for number, leaf in enumerate(place.leaves):
            made_of.setdefault(leaf, []).append((name, number))
    return made_of


def check_names(wanted: Mapping[str, Place], found: Mapping[str, tuple[int, ...]]) -> None:
    """Every wanted tensor is there in its shape, and nothing else; else PretrainedError that names what differs."""
    problems = list(_differences(wanted, found))
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise PretrainedError("; ".join(problems[:5]) + more)


def _differences(wanted: Mapping[str, Place], found: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for name, place in wanted.items():
        if name not in found:
            yield f"tensor {name} is missing"
        elif found[name] != place.shape:
            yield f"tensor {name} has shape {list(found[name])}, the config asks for {list(place.shape)}"
    for name in found:
        if name not in wanted:
            yield f"tensor {name} is not known in this model"


def require(official: Mapping[str, Any], **values: Any) -> None:
    """Raise PretrainedError unless each field is absent or has the only value (or one of a tuple) we can compute."""
    for name, value in values.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if name in official and official[name] not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise PretrainedError(f"config.json: {name}={official[name]!r} is not supported, only {choices}")


def activation(official: str, gated: bool = False) -> str:
    """Our name of an activation; `gated`: of the gated feed-forward that has it."""
    if official not in ACTIVATIONS:
        raise PretrainedError(f"config.json: activation {official!r} is not supported, only {', '.join(ACTIVATIONS)}")
    name = ACTIVATIONS[official]
    if not gated:
        return name
    kinds = {"silu": "swiglu", "gelu_tanh": "geglu", "relu": "reglu"}
    if name not in kinds:
        raise PretrainedError(f"config.json: a feed-forward gated by {official!r} is not supported")
    return kinds[name]


def official_activation(ours: str) -> str:
    """The first official name of one of our activations, of its gate for the gated kinds."""
    plain = {"swiglu": "silu", "geglu": "gelu_tanh", "reglu": "relu"}.get(ours, ours)
    return next(official for official, name in ACTIVATIONS.items() if name == plain)
