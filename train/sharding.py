"""Mesh, logical-axis rules, and where every array of a run lives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from model import tree
from train import config as cfg
from train.config import UserError

Rules = Mapping[str, Sequence[str]]


def make_mesh(config: cfg.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh with axes data, fsdp, tensor over `devices` (all by default); `data=-1` takes what remains."""
    devices = list(devices or jax.devices())
    inner = config.fsdp * config.tensor
    data = max(len(devices) // inner, 1) if config.data == -1 else config.data
    if (config.data == -1 and len(devices) % inner) or data * inner > len(devices):
        raise UserError(
            f"mesh: data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not fit the {len(devices)} "
            f"{devices[0].platform} device(s) here; lower an axis"
            + (", or set JAX_NUM_CPU_DEVICES" if devices[0].platform == "cpu" else "")
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, cfg.MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[: math.prod(shape)])


@contextmanager
def use(mesh: jax.sharding.Mesh, rules: Rules) -> Iterator[None]:
    """Make `mesh` and `rules` current, so that constraints inside the model mean something while it is traced."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple((dim, tuple(axes) or None) for dim, axes in rules.items())):
        yield


def parameter_specs(boxed: Any, mesh: jax.sharding.Mesh, rules: Rules) -> tuple[Any, list[str]]:
    """A `PartitionSpec` for every parameter of a tree from `model.init`, and notes on dims that had to be copied.

    Two dims of one parameter on the same mesh axis are refused. A dim that its axes do not divide is copied
    instead of split, and noted.
    """
    notes: list[str] = []

    def spec(path, box) -> PartitionSpec:
        name, names, shape = tree.path_name(path), box.names, box.value.shape
        taken: dict[str, str] = {}
        parts: list[tuple[str, ...] | None] = []
        for dim, size in zip(names, shape, strict=True):
            axes = tuple(axis for axis in rules.get(dim, ()) if mesh.shape[axis] > 1)
            for axis in axes:
                if axis in taken:
                    raise UserError(
                        f"mesh.rules: dims '{taken[axis]}' and '{dim}' of parameter {name} both lie on mesh axis "
                        f"'{axis}'; give one of them another axis"
                    )
                taken[axis] = dim
            if size % math.prod(mesh.shape[axis] for axis in axes):
                notes.append(f"{name}: {dim}={size} is not divisible by mesh axes {'×'.join(axes)}, so it is copied")
                axes = ()
            parts.append(axes or None)
        return PartitionSpec(*parts)

    return jax.tree_util.tree_map_with_path(spec, boxed, is_leaf=tree.is_box), notes


def state_shardings(state: Any, params: Any, specs: Any, mesh: jax.sharding.Mesh) -> Any:
    """A sharding for every leaf of an abstract `state`: what is shaped like a parameter lies where it lies.

    A leaf belongs to the parameter whose path ends its own (optimizer moments, averages). All else (counters,
    factored moments) is copied to every device.
    """
    shapes = {name: leaf.shape for name, leaf in tree.named_leaves(params).items()}
    by_name = tree.named_leaves(specs, is_leaf=_is_spec)

    def place(path, leaf) -> NamedSharding:
        for start in range(len(path)):
            name = tree.path_name(path[start:])
            if name in shapes and shapes[name] == leaf.shape:
                return NamedSharding(mesh, by_name[name])
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


def batch_sharding(mesh: jax.sharding.Mesh, rules: Rules) -> NamedSharding:
    """Where the first dim of a batch lies; the other dims are whole."""
    return NamedSharding(mesh, PartitionSpec(tuple(rules.get("batch", ())) or None))


def batch_ways(mesh: jax.sharding.Mesh, rules: Rules) -> int:
    """Over how many groups of devices a batch is split."""
    return math.prod(mesh.shape[axis] for axis in rules.get("batch", ()))


def place_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a batch, as parts of global arrays on the mesh."""
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
