"""Published weights in and out: `read_model` and `write_model` for Hugging Face folders of every family here.

    config, params = read_model("bert-base-uncased")     # a folder with config.json and model.safetensors
    write_model("exported", config, params)

On the command line `python -m model.pretrained import DIR RUN` makes a run directory, `export RUN DIR` a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from pydantic import ValidationError

from model import tree
from model.config import TransformerConfig
from model.pretrained import storage
from model.pretrained.names import (
    Family,
    PretrainedError,
    by_leaf,
    check_names,
    places,
)
from model.transformer import initialize, transformer

# Model type → the file that knows it. The order is that in which an export looks for a family that fits.
MODULES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "bert": "bert",
    "roberta": "bert",
    "distilbert": "distilbert",
    "albert": "albert",
    "electra": "electra",
    "t5": "t5",
    "mt5": "t5",
    "bart": "bart",
    "pegasus": "bart",
    "marian": "bart",
}


def family_of(model_type: str) -> Family:
    """The family by the name in config.json."""
    if model_type not in MODULES:
        raise PretrainedError(f"model_type {model_type!r} is not supported; supported are {', '.join(MODULES)}")
    families = import_module(f"model.pretrained.{MODULES[model_type]}").FAMILIES
    return next(family for family in families if family.model_type == model_type)


def fitting_family(config: TransformerConfig) -> Family:
    """The first family that has exactly this model; PretrainedError with every family's reason when none has."""
    reasons = []
    for model_type in MODULES:
        family = family_of(model_type)
        try:
            check_fits(family, config)
        except PretrainedError as error:
            reasons.append(f"{model_type}: {error}")
            continue
        return family
    raise PretrainedError("no published family has a model with this config (" + "; ".join(reasons) + ")")


# What does not change what a model computes from given parameters.
_FREE = (
    "param_dtype",
    "dtype",
    "remat",
    "layer_loop",
    "attention_implementation",
    "initializer",
    "init_stddev",
    "position_init_stddev",
    "scale_residual_init",
    "dropout_rate",
    "attention_dropout_rate",
    "activation_dropout_rate",
    "load_balance_weight",
    "router_z_weight",
    "num_labels",
)


def check_fits(family: Family, config: TransformerConfig) -> None:
    """PretrainedError unless the family's own config.json, read again, means `config`."""
    official = family.from_config(config)
    wanted = places(family.rules(config), _shapes(config))
    try:
        again = family.to_config(official, set(wanted))
    except ValueError as error:
        raise PretrainedError(f"the family has no such model: {_reasons(error)}") from error
    old, new = config.model_dump(), again.model_dump()
    for name in old:
        a, b = _resolved(config, name, old[name]), _resolved(again, name, new[name])
        if name not in _FREE and a != b:
            raise PretrainedError(f"{name}={a!r}, where the family has {b!r}")


def _resolved(config: TransformerConfig, name: str, value: Any) -> Any:
    """A field's value, where several ways of writing it mean the same."""
    resolved = {
        "num_kv_heads": config.count_of_kv_heads,
        "head_dim": config.size_of_head,
        "mlp_dim": config.size_of_mlp,
        "num_encoder_layers": config.count_of_encoder_layers,
        "attention_bias": config.biased_attention,
        "attention_scale": config.attention_scale or config.size_of_head**-0.5,
    }
    if "lm" not in config.heads:
        resolved |= dict.fromkeys(("head_transform", "head_bias", "tie_embeddings"))
    return resolved.get(name, value)


def read_model(
    folder: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    shardings: Callable[[Any], Any] | None = None,
) -> tuple[TransformerConfig, dict[str, Any]]:
    """The config and the parameters of a Hugging Face folder, every tensor used once or refused by name.

    Args:
      overrides: fields of the config to change, such as `dtype`.
      shardings: from the boxed abstract parameters to a sharding for each; by default the first device holds all.
        Tensors are read one by one and go straight where they belong.

    Raises PretrainedError: one sentence that names the file, field or tensor.
    """
    folder = Path(folder)
    official = storage.read_json(folder / "config.json")
    family = family_of(str(official.get("model_type")))
    with storage.TensorFolder(folder) as tensors:
        names = _official_names(family, tensors.shapes)
        config = _config(family, official, names, tensors, overrides)
        wanted = places(family.rules(config), _shapes(config))
        _check_copies(family, config, names, tensors)
        names = _without_copies(names, family.aliases(config), family.derived(config))
        check_names(wanted, {name: tensors.shapes[stored] for name, stored in names.items()})
        boxed = _boxed(config)
        if shardings is None:
            device = SingleDeviceSharding(jax.devices()[0])
            where = jax.tree.map(lambda _: device, tree.unbox(boxed))
        else:
            where = shardings(boxed)
        made_of, dtype = by_leaf(wanted), np.dtype(jax.numpy.dtype(config.param_dtype))

        def load(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
            array = np.empty(leaf.shape, dtype)
            for name, number in made_of[tree.path_name(path)]:
                array[wanted[name].index] = wanted[name].to_ours(tensors.read(names[name]))[number]
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index])

        params = jax.tree_util.tree_map_with_path(load, tree.unbox(boxed), where)
    return config, params


def _config(family, official, names, tensors, overrides) -> TransformerConfig:
    try:
        config = family.to_config(official, set(names))
        stored = {tensors.dtypes[name] for name in names.values()}
        if unread := sorted(stored - set(storage.DTYPES.values())):
            known = ", ".join(storage.DTYPES.values())
            raise PretrainedError(f"tensors are stored as {', '.join(unread)}; only {known} are read")
        changes = dict(param_dtype="bfloat16") if stored == {"bfloat16"} else {}
        return TransformerConfig.model_validate(config.model_dump() | changes | dict(overrides or {}))
    except KeyError as error:
        raise PretrainedError(f"config.json has no field {error}, which a {family.model_type} needs") from error
    except (ValueError, TypeError) as error:
        raise PretrainedError(f"config.json describes a model that is not supported: {_reasons(error)}") from error


def _reasons(error: Exception) -> str:
    """What a config refuses, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = ((".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors())
    reasons = [f"{field}: {reason}" if field else reason.removeprefix("Value error, ") for field, reason in problems]
    return "; ".join(reasons).replace("\n", "; ")


def _official_names(family: Family, stored: Collection[str]) -> dict[str, str]:
    """The names of the headed model → those in the file, which a bare model stores without the prefix.

    Files converted from TensorFlow long ago call the scale and bias of a norm gamma and beta.
    """
    ignored = re.compile("|".join(family.ignored) or "(?!)")
    modern = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    names = {re.sub("|".join(modern), lambda old: modern[old[0]], name): name for name in stored}
    names = {name: stored for name, stored in names.items() if not ignored.fullmatch(name)}
    is_bare = family.prefix and not any(name.startswith(family.prefix) for name in names)
    return {family.prefix * bool(is_bare) + name: stored for name, stored in names.items()}


def _check_copies(family: Family, config: TransformerConfig, names: dict[str, str], tensors) -> None:
    """Tensors that are not read hold what we compute in their place."""
    for second, first in family.aliases(config).items():
        both = [tensors.read(names[name]) for name in (first, second) if name in names]
        if len(both) == 2 and not np.array_equal(*both):
            raise PretrainedError(f"tensor {second} differs from {first}, to which config.json ties it")
    for name, array in family.derived(config).items():
        if name not in names:
            continue
        stored = tensors.read(names[name])
        if stored.shape != array.shape or not np.allclose(stored.astype(np.float32), array, atol=1e-2):
            raise PretrainedError(f"tensor {name} differs from what the config says it holds")


def _without_copies(names: dict[str, str], aliases: Mapping[str, str], derived: Collection[str]) -> dict[str, str]:
    """One name for each tied tensor: the first, also where the file has only the second. None for derived ones."""
    kept = {name: stored for name, stored in names.items() if name not in aliases and name not in derived}
    return {first: names[second] for second, first in aliases.items() if second in names} | kept


@lru_cache
def _boxed(config: TransformerConfig) -> Any:
    """The abstract parameters, each in a box that names its dims."""
    return jax.eval_shape(lambda: initialize(transformer(config), jax.random.key(0)))


def _shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in tree.named_leaves(tree.unbox(_boxed(config))).items()}


def write_model(
    folder: str | Path,
    config: TransformerConfig,
    params: Mapping[str, Any],
    *,
    family: str | None = None,
    original: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write `config` and `params` as a Hugging Face folder that the official loader opens.

    Args:
      family: its model type; None takes the first that fits.
      original: the config.json that the model was imported with; fields that we do not know are kept.
      dtype: of the written tensors; None keeps the parameters' own.

    Raises PretrainedError when the family has no such model, with the field that it lacks.
    """
    folder = Path(folder)
    if family is None and original is not None:
        family = original["model_type"]
    if family is None:
        chosen = fitting_family(config)
    else:
        check_fits(chosen := family_of(family), config)
    wanted = places(chosen.rules(config), _shapes(config))
    leaves = tree.named_leaves(params)
    prefix = chosen.prefix if chosen.is_bare(config) else ""
    stored = dtype or config.param_dtype

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, place in wanted.items():
            parts = [np.asarray(leaves[leaf][place.index]) for leaf in place.leaves]
            tensor = place.to_official(parts)
            yield name.removeprefix(prefix), tensor.astype(dtype or tensor.dtype)
        for name, array in chosen.derived(config).items() if chosen.saves_derived(config) else ():
            yield name.removeprefix(prefix), array.astype(stored)

    storage.write_tensors(folder, tensors(), max_shard_bytes)
    own = chosen.from_config(config)
    if original and len(original.get("id2label") or ()) == len(own.get("id2label") or ()):
        own = {name: value for name, value in own.items() if name not in ("id2label", "label2id")}  # names of labels
    official = dict(chosen.defaults(config)) | dict(original or {}) | own | {"dtype": stored}
    (folder / "config.json").write_text(json.dumps(official, indent=2) + "\n", "utf-8")
