"""Activations by address, read and changed: `decoder/layers/3/self_attention/probabilities`.

    with capture("decoder/layers/*/output", "head/output") as taps:
        logits = model.apply({"params": params}, tokens)
    taps["decoder/layers/0/output"]                                   # [batch, length, embed]

An address is the path of a module's parameters, the number of the layer in it, and the word for what is read there:
`output` of every projection, norm, embedding and block, `probabilities` and `attended` of attention, `hidden` of a
feed-forward. `*` stands for any part, `**` for any number of parts. What a model has: `addresses(model, params, …)`.

The same addresses change what is computed, before it is read:

    with capture(patch={"decoder/layers/2/self_attention/attended": zero(np.s_[:, :, 3])}):       # without head 3
        logits = model.apply({"params": params}, tokens)

It works under jit, scan, remat and sharding, as activations are outputs of the function that is compiled. So a
`capture` stands inside of it, around `model.apply`, and what is wanted is returned; one that stands outside is refused:

    @jax.jit
    def hidden(params, tokens):
        with capture("decoder/layers/*/output") as taps:
            model.apply({"params": params}, tokens)
        return dict(taps)

Without a capture nothing of this is in the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.extend.core import get_opaque_trace_state
from jax.typing import ArrayLike
from jaxtyping import Array

from model.tree import glob, near

TAPS, PATCHES = "taps", "patches"
"""Collections of variables: what is read, and in which layers something is changed."""


@dataclass(frozen=True)
class Patch:
    """What becomes of an activation: of the part `at`, an index as NumPy's, or of all of it."""

    kind: Literal["replace", "add"]
    value: Any
    at: Any = ...

    def __call__(self, x: Array) -> Array:
        value = jnp.asarray(self.value, x.dtype)
        return x.at[self.at].set(value) if self.kind == "replace" else x.at[self.at].add(value)


def replace(value: ArrayLike, at: Any = ...) -> Patch:
    """Another value in its place; it must broadcast to the part."""
    return Patch("replace", value, at)


def zero(at: Any = ...) -> Patch:
    """0 in its place: ablation."""
    return Patch("replace", 0, at)


def add(value: ArrayLike, at: Any = ...) -> Patch:
    """More of something: steering."""
    return Patch("add", value, at)


class Taps(Mapping[str, Array]):
    """Address → activation, filled by the calls of a model within the capture; a later call takes the place of one."""

    def __init__(self, patterns: tuple[str, ...], patches: Mapping[str, Patch]):
        self._matches = {pattern: glob(pattern) for pattern in patterns}
        self._patches = [(address, glob(address), patch) for address, patch in patches.items()]
        self._values: dict[str, Array] = {}
        self._addresses: dict[str, None] = {}
        self._counts: dict[str, int] = {}
        self._was_applied, self._trace = False, get_opaque_trace_state(convention="flax")

    def __getitem__(self, address: str) -> Array:
        if address not in self._values:
            raise KeyError(f"{address} was not captured{near(address, self._values)}")
        return self._values[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def stack(self, pattern: str) -> Array:
        """The activations whose addresses the pattern matches, in order, as one array with a dim in front."""
        is_match = glob(pattern)
        return jnp.stack([value for address, value in self._values.items() if is_match(address)])

    def addresses_of(self, path: tuple[str, ...], name: str) -> list[str]:
        """The address of what a module taps, or of that in each layer."""
        if "layers" not in path:
            return ["/".join((*path, name))]
        at = path.index("layers") + 1
        count = self._counts["/".join(path[: at - 1])]
        return ["/".join((*path[:at], str(i), *path[at:], name)) for i in range(count)]

    def is_wanted(self, path: tuple[str, ...], name: str) -> bool:
        found = self.addresses_of(path, name)
        self._addresses |= dict.fromkeys(found)
        patterns = [*self._matches.values(), *(is_match for _, is_match, _ in self._patches)]
        return any(is_match(address) for is_match in patterns for address in found)

    def tap(self, module: nn.Module, name: str, x: Array) -> Array:
        path = module.path
        if not self.is_wanted(path, name):
            return x
        found = self.addresses_of(path, name)
        for number, (_, is_match, patch) in enumerate(self._patches):
            if not any(map(is_match, found)):
                continue
            if "layers" in path:  # which layer this is only the scan knows, so it is told by an array over the layers
                x = jnp.where(module.get_variable(PATCHES, f"{name}:{number}"), patch(x), x)
            else:
                x = patch(x)
        if any(is_match(address) for is_match in self._matches.values() for address in found):
            module.sow(TAPS, name, x)
        return x

    def apply(
        self, apply: Callable, model: nn.Module, variables: Mapping, args: tuple, mutable: Any, rest: dict
    ) -> Any:
        """`model.apply` with what is captured taken out of its result."""
        if get_opaque_trace_state(convention="flax") != self._trace:
            # What was read could not get out, and what was changed would stay in the program that is compiled.
            raise ValueError(
                "the model is called inside a function that jit, grad or another transformation traces, the capture "
                "stands around that function; put it inside, around model.apply, and return its taps"
            )
        self._was_applied, self._counts = True, _layer_counts(model, variables["params"])
        asked = [] if mutable is False else [mutable] if isinstance(mutable, str) else mutable
        mine = asked if asked is True else [*asked, TAPS]
        flags = self._flags(apply, model, variables, args, mine, rest)
        result, state = apply(model, {**variables, **flags}, *args, mutable=mine, **rest)
        state = dict(state)
        for path, calls in flatten_dict(state.pop(TAPS, {})).items():
            self._keep(path[:-1], path[-1], calls)
        return result if mutable is False else (result, state)

    def _flags(self, apply, model, variables, args, mutable, rest) -> dict[str, Any]:
        """For each change of something in layers, in which of them it is made."""
        if not self._patches:
            return {}
        found: dict[str, Any] = {}

        def note(path: tuple[str, ...], name: str) -> None:
            if "layers" not in path:
                return
            for number, (_, is_match, _) in enumerate(self._patches):
                flags = [is_match(address) for address in self.addresses_of(path, name)]
                if any(flags):
                    node = found
                    for part in path:
                        node = node.setdefault(part, {})
                    node[f"{name}:{number}"] = np.array(flags)

        listing = _Listing(self, note)
        token = _ACTIVE.set(listing)
        try:
            jax.eval_shape(lambda: apply(model, variables, *args, mutable=mutable, **rest))
        finally:
            _ACTIVE.reset(token)
        return {PATCHES: found} if found else {}

    def _keep(self, path: tuple[str, ...], name: str, calls: tuple[Array, ...]) -> None:
        for number, value in enumerate(calls):
            for layer, address in enumerate(self.addresses_of(path, name)):
                if any(is_match(address) for is_match in self._matches.values()):
                    # A stack that serves as encoder and as decoder is called twice.
                    told = address if len(calls) == 1 else f"{address}@{number}"
                    self._values[told] = value[layer] if "layers" in path else value

    def check(self) -> None:
        """Raise ValueError where nothing was captured, or the model has no such address."""
        if not self._was_applied:
            raise ValueError(
                "no model was called within the capture, or it was compiled before; put the capture inside the "
                "function that jit compiles, around model.apply"
            )
        patterns = [*self._matches.items(), *((address, is_match) for address, is_match, _ in self._patches)]
        for pattern, is_match in patterns:
            if not any(map(is_match, self._addresses)):
                raise ValueError(
                    f"{pattern}: the model has no activation of this address{near(pattern, self._addresses)}"
                )


class _Listing:
    """Notes what is tapped and changes nothing."""

    def __init__(self, taps: Taps, note: Callable[[tuple[str, ...], str], None]):
        self._taps, self._note = taps, note

    def is_wanted(self, path: tuple[str, ...], name: str) -> bool:
        return self._taps.is_wanted(path, name)

    def tap(self, module: nn.Module, name: str, x: Array) -> Array:
        self._note(module.path, name)
        return x


_ACTIVE: ContextVar[Taps | _Listing | None] = ContextVar("taps", default=None)


@contextmanager
def capture(*patterns: str, patch: Mapping[str, Patch] | None = None) -> Iterator[Taps]:
    """Within it, calls of a model give the activations that the patterns match, with `patch` {pattern: Patch} made.

    Raises ValueError at its end for a pattern that matches no activation, naming near ones.
    """
    taps = Taps(patterns, patch or {})
    token = _ACTIVE.set(taps)
    try:
        yield taps
    finally:
        _ACTIVE.reset(token)
    taps.check()


def addresses(model: nn.Module, params: Mapping[str, Any], *args: Any, **named: Any) -> list[str]:
    """Every address of a model, in the order of computation; the arguments are those of a call, or their shapes."""

    def call(*args: Any) -> list[str]:
        with capture("**") as taps:
            model.apply({"params": params}, *args, **named)
        found.extend(taps)
        return []

    found: list[str] = []
    jax.eval_shape(call, *args)
    return found


def tap(module: nn.Module, name: str, x: Array) -> Array:
    """`x` as it is to go on; for modules, which so name what can be read and changed."""
    active = _ACTIVE.get()
    return x if active is None or module.is_initializing() else active.tap(module, name, x)


def is_tapped(module: nn.Module, name: str) -> bool:
    """Whether `tap` would do anything: for what is computed only to be read."""
    active = _ACTIVE.get()
    return active is not None and not module.is_initializing() and active.is_wanted(module.path, name)


class Tapped(nn.Module):
    """A model whose calls can be captured."""

    @nn.nowrap
    def apply(self, variables: Mapping[str, Any], *args: Any, mutable: Any = False, **rest: Any) -> Any:
        """As every Flax module has it."""
        active = _ACTIVE.get()
        if not isinstance(active, Taps):
            return super().apply(variables, *args, mutable=mutable, **rest)
        return active.apply(
            lambda model, *a, **k: nn.Module.apply(model, *a, **k), self, variables, args, mutable, rest
        )


def _layer_counts(model: nn.Module, params: Mapping[str, Any]) -> dict[str, int]:
    """Stack → number of its layers."""
    config = model.config
    counts = {stack: config.num_layers for stack in params}
    if getattr(config, "stack", None) == "encoder_decoder":
        counts["encoder"] = config.count_of_encoder_layers
    return counts
