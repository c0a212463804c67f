"""Parameters out of checkpoints: for whoever opens a run, for a run that starts from another, and their mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from data import tokenizer as tokenizers
from model import tree
from train import lora
from train.checkpoint import DamagedError, list_steps, restore_group, verified_manifest
from train.command_line import read_config
from train.config import UserError


def restore_common(folder: Path, params: Any, shardings: Any) -> tuple[Any, list[str], list[str]]:
    """`params` with every array replaced that the newest checkpoint in `folder` has under the same name.

    A head (`heads/…`) of another shape is another head: it stays as it is. What LoRA added there is merged.
    Returns also the names of the arrays that stay as they are, and of those in the checkpoint that are not used.
    A damaged checkpoint is named on stderr and passed over.
    Raises UserError where other shapes differ, or where nothing is in common.
    """
    mine, places = tree.named_leaves(params), tree.named_leaves(shardings)

    def restore(step: int, manifest: dict) -> tuple[Any, list[str], list[str]]:
        name = "ema" if "ema" in manifest["arrays"] else "params"
        saved = manifest["arrays"][name]
        common = [key for key in mine if key in saved and not _is_new(key, mine[key].shape, saved[key]["shape"])]
        if not common:
            raise UserError(f"init_from: no parameter of {folder.parent} has the name of one of this model's")
        factors = [key for key in saved if key.startswith(lora.PREFIX) and _kernel_of(key) in common]
        everywhere = {key: _replicated(places[_kernel_of(key)]) for key in factors}
        shapes = {key: jax.ShapeDtypeStruct(saved[key]["shape"], saved[key]["dtype"]) for key in factors}

        def nested(leaves: Mapping[str, Any]) -> Any:
            return flax.traverse_util.unflatten_dict({key: leaves[key] for key in [*common, *factors]}, sep="/")

        wanted, where = nested(mine | shapes), nested(places | everywhere)
        found = restore_group(folder, step, name, wanted, where, manifest, verify=True, only_common=True)
        found = tree.named_leaves(_merged(found, folder, step))
        merged = flax.traverse_util.unflatten_dict(mine | found, sep="/")
        unused = [key for key in saved if key not in mine and key not in factors]
        return merged, [key for key in mine if key not in common], unused

    return next(_verified(folder, list_steps(folder)[::-1], restore))


def restore_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """That of the newest checkpoint in `folder` that verifies."""
    return next(
        _verified(folder, list_steps(folder)[::-1], lambda step, _: tokenizers.load(folder / str(step) / "tokenizer"))
    )


def _is_new(name: str, shape: tuple[int, ...], saved_shape: list[int]) -> bool:
    """Whether a parameter has nothing to do with the one of its name: another head's, or another run's addition."""
    return name.startswith(lora.PREFIX) or (name.startswith("heads/") and list(shape) != saved_shape)


def _merged(params: dict[str, Any], folder: Path, step: int) -> dict[str, Any]:
    """The model's own parameters, with what LoRA added to them in the run of this checkpoint."""
    if not any(name.startswith(lora.PREFIX) for name in tree.named_leaves(params)):
        return params
    return lora.merge(params, read_config(folder / str(step) / "config.json").tuning)


def _kernel_of(factor: str) -> str:
    return factor.removeprefix(lora.PREFIX).rpartition("/")[0]


def _replicated(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec())


def restore_params(folder: Path, abstract: Any, shardings: Any, steps: list[int], count: int = 1) -> tuple[Any, dict]:
    """The mean of the parameters (of the averaged ones, where kept) of the first `count` of `steps` that verify.

    Returns them with the manifest of the first. Checkpoints that do not verify are named on stderr. `UserError` when
    fewer than `count` are left.
    """

    def restore(step: int, manifest: dict) -> tuple[Any, dict]:
        name = "ema" if "ema" in manifest["arrays"] else "params"
        params = restore_group(folder, step, name, abstract, shardings, manifest, verify=True)
        return _merged(params, folder, step), manifest

    found = _verified(folder, steps, restore)
    params, first = next(found)
    if count == 1:
        return params, first
    total, dtypes, used = jax.tree.map(jnp.float32, params), jax.tree.map(lambda x: x.dtype, params), 1
    for params, _ in islice(found, count - 1):
        total, used = jax.tree.map(jnp.add, total, params), used + 1
    if used < count:
        raise UserError(f"{folder} has {used} checkpoint(s) to average, not {count}")
    return jax.tree.map(lambda x, dtype: (x / count).astype(dtype), total, dtypes), first


def _verified(folder: Path, steps: list[int], restore: Callable[[int, dict], Any]) -> Iterator[Any]:
    """`restore(step, manifest)` of those of `steps` that are undamaged; `UserError` if there is none."""
    problems, is_any = [], False
    for step in steps:
        try:
            found = restore(step, verified_manifest(folder, step))
        except DamagedError as error:
            problems.append(f"checkpoint {step} does not verify: {error}")
            print(f"warning: {problems[-1]}", file=sys.stderr)
            continue
        is_any = True
        yield found
    if not is_any:
        raise UserError(*(problems or [f"{folder.parent} has no checkpoint yet"]))
