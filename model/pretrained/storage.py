"""Safetensors folders, read and written tensor by tensor. Nothing else is opened: a pickle can run code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from model.pretrained.names import PretrainedError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{path.parent} has no {path.name}; a Hugging Face folder has one") from None
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise PretrainedError(f"{path} holds no JSON object")
    return value


class TensorFolder:
    """The tensors of a folder's safetensors file, or of its shards; each is read from disk when asked for."""

    def __init__(self, folder: Path):
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise PretrainedError("reading safetensors needs the hf extra: pip install 'quire[hf]'") from None
        self._open = ExitStack()
        self._where: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        try:
            for path in _files(folder):
                file = self._open.enter_context(safe_open(path, framework="numpy"))
                for name in file.keys():
                    part = file.get_slice(name)
                    self._where[name] = file
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = DTYPES.get(part.get_dtype(), part.get_dtype())
        except (SafetensorError, OSError) as error:
            self._open.close()
            raise PretrainedError(f"{path} is not a readable safetensors file: {error}") from error

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, in the type it is stored in."""
        return self._where[name].get_tensor(name)

    def __enter__(self) -> TensorFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._where.clear()
        self._open.close()


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise PretrainedError(f"{folder / INDEX} has no weight_map from tensors to the names of files")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise PretrainedError(f"{folder / INDEX} names {name}, which is not in the folder")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise PretrainedError(
            f"{folder} has {pickles[0]} but no {SINGLE}: only safetensors are read, because loading a pickle can run "
            "any code; save the model again with safe_serialization"
        )
    raise PretrainedError(f"{folder} has neither {SINGLE} nor {INDEX}")


def write_tensors(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int) -> None:
    """Write tensors in their order, as one file or as shards with an index; one shard is in memory at a time."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    paths, weight_map, total = [], {}, 0
    for shard in _shards(tensors, max_shard_bytes):
        paths.append(folder / f"model-{len(paths) + 1:05d}.safetensors")
        save_file(shard, paths[-1], metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, len(paths))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(paths) == 1:
        paths[0].replace(folder / SINGLE)
        return
    names = [f"model-{i + 1:05d}-of-{len(paths):05d}.safetensors" for i in range(len(paths))]
    for path, name in zip(paths, names, strict=True):
        path.replace(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[number - 1] for name, number in weight_map.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _shards(tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard
