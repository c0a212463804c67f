"""Arrays on disk, opened on one CPU without the config, the code or the mesh of what wrote them.

    from model.tree import open_archive

    archive = open_archive("runs/quickstart")                # {path: Stored}; nothing but names and shapes is read
    archive["decoder/layers/self_attention/query/kernel"][0, :, 2]

Opened are run directories, orbax checkpoints of any program (one tree, several items, or a folder of steps; zarr and
zarr3, in OCDBT or in plain files), and safetensors: one file, or a folder of shards.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_ORBAX_FILES = ("_METADATA", "manifest.ocdbt", "_sharding")
_DEFAULT_GROUPS = ("ema", "params")  # of a run, the first that is there: what `load_run` opens


class ArchiveError(Exception):
    """A folder that cannot be opened: which file, what was wrong, what was expected."""


@dataclass(frozen=True)
class Stored:
    """An array that lies on disk; `stored[1, :5]` reads that part of it, as NumPy would index it."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: str
    """How it was distributed when it was saved; empty where that is not known."""
    _read: Callable[[tuple[slice | int, ...]], np.ndarray] = field(repr=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Integers and slices, one for each dim or fewer. Raises IndexError for others, ArchiveError for damage."""
        parts = index if isinstance(index, tuple) else (index,)
        if ... in parts:
            at = parts.index(...)
            parts = (*parts[:at], *[slice(None)] * (self.ndim - len(parts) + 1), *parts[at + 1 :])
        if len(parts) > self.ndim:
            raise IndexError(f"{self.name} has {self.ndim} dims, not {len(parts)}")
        found: list[slice | int] = []
        for dim, (part, size) in enumerate(zip(parts, self.shape, strict=False)):
            if isinstance(part, slice):
                found.append(slice(*part.indices(size)))
                if found[-1].step < 1:
                    raise IndexError(f"{self.name}: a slice must go upwards, not by {part.step}")
            elif not -size <= part < size:
                raise IndexError(f"{self.name}: {part} is not within dim {dim}, which has {size}")
            else:
                found.append(int(part) % size)
        return self._read(tuple(found))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


@dataclass(frozen=True)
class Archive(Mapping[str, Stored]):
    """The arrays of a checkpoint by path, in its order."""

    path: Path
    """Of the checkpoint itself, where that was found."""
    arrays: Mapping[str, Stored]

    def __getitem__(self, name: str) -> Stored:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def open_archive(path: str | Path, step: int | None = None, group: str | None = None) -> Archive:
    """The arrays of a run, a checkpoint or a safetensors folder, without reading them.

    Args:
      step: of the checkpoints in a folder; the newest by default.
      group: of a run, `params`, `ema` or `optimizer`; by default the average where there is one, as `load_run` has it.
        Of another checkpoint of several items, one of them; by default all, each path beginning with its item.

    Raises ArchiveError where there is nothing to open.
    """
    path = Path(path)
    if not path.exists():
        raise ArchiveError(f"{path}: no such file or folder")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ArchiveError(f"{path}: expected a folder, or a .safetensors file")
        return _only(step, group, Archive(path, _safetensors([path])))
    if files := sorted(path.glob("*.safetensors")):
        return _only(step, group, Archive(path, _safetensors(_shards(path, files))))
    checkpoint = _checkpoint(path, step)
    items = _items(checkpoint)
    if group is not None:
        if group not in items:
            raise ArchiveError(f"{checkpoint}: has no group {group!r}; it has {', '.join(items)}")
        items = {"": items[group]}
    elif (checkpoint / "manifest.json").is_file() and "params" in items:
        items = {"": items[next(name for name in _DEFAULT_GROUPS if name in items)]}
    elif len(items) == 1:
        items = {"": next(iter(items.values()))}
    found: dict[str, Stored] = {}
    for item, folder in items.items():
        found |= {f"{item}/{name}" if item else name: array for name, array in _orbax(folder).items()}
    return Archive(checkpoint, found)


def groups(path: str | Path, step: int | None = None) -> list[str]:
    """The groups that `open_archive` can open of a checkpoint; none where it has no parts."""
    path = Path(path)
    if path.is_file() or list(path.glob("*.safetensors")):
        return []
    return [name for name in _items(_checkpoint(path, step)) if name]


def _only(step: int | None, group: str | None, archive: Archive) -> Archive:
    for name, value in (("step", step), ("group", group)):
        if value is not None:
            raise ArchiveError(f"{archive.path}: safetensors have no {name}")
    return archive


# Where a checkpoint is


def _checkpoint(path: Path, step: int | None) -> Path:
    """The folder of one step."""
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    steps = {}
    for folder in path.iterdir():
        if folder.is_dir() and (match := re.fullmatch(r"(?:[A-Za-z]+_)?(\d+)", folder.name)) and _items(folder, False):
            steps[int(match[1])] = folder
    if not steps:
        if step is not None:
            raise ArchiveError(f"{path}: has no steps; leave the step out")
        return path
    if step is None:
        return steps[max(steps)]
    if step not in steps:
        raise ArchiveError(f"{path}: has no step {step}; it has {', '.join(map(str, sorted(steps)))}")
    return steps[step]


def _items(checkpoint: Path, is_required: bool = True) -> dict[str, Path]:
    """Item → folder of its tree; the item of a checkpoint that is a single tree is empty."""
    if _is_tree(checkpoint):
        return {"": checkpoint}
    found = {folder.name: folder for folder in sorted(checkpoint.iterdir()) if folder.is_dir() and _is_tree(folder)}
    if is_required and not found:
        unfinished = next(checkpoint.rglob("*.orbax-checkpoint-tmp*"), None)
        told = "; a save was cut off there" if unfinished else ""
        raise ArchiveError(
            f"{checkpoint}: there is no run, no orbax checkpoint and no .safetensors file here{told}; expected one"
        )
    return found


def _is_tree(folder: Path) -> bool:
    is_finished = ".orbax-checkpoint-tmp" not in folder.name
    return is_finished and any((folder / name).is_file() for name in _ORBAX_FILES)


# Orbax


def _orbax(folder: Path) -> dict[str, Stored]:
    import tensorstore as ts

    in_database = (folder / "manifest.ocdbt").is_file()
    location = f"file://{folder.absolute()}/"
    store = {"driver": "ocdbt", "base": location} if in_database else location
    try:
        database = ts.KvStore.open(store).result()
        keys = [key.decode() for key in database.list().result()]
        described = [key for key in keys if key.rpartition("/")[2] in (".zarray", "zarr.json")]
        contents = [database.read(key) for key in described]
        metadata = {key: json.loads(found.result().value) for key, found in zip(described, contents, strict=True)}
    except (ValueError, OSError, UnicodeError) as error:
        raise ArchiveError(f"{folder}: its list of arrays cannot be read: {_first_line(error)}") from error
    paths, shardings = _names(folder), _shardings(folder)
    found = {}
    for key, zarr in metadata.items():
        stored_as, _, kind = key.rpartition("/")
        if kind == "zarr.json" and zarr.get("node_type") != "array":
            continue
        name = paths.get(stored_as, stored_as.replace(".", "/"))
        found[name] = _described(folder, name, kind, zarr, shardings.get(stored_as, ""), store, stored_as)
    if lost := sorted(set(paths.values()) - set(found)):
        raise ArchiveError(f"{folder}: {lost[0]} is in its _METADATA, but its array is not here")
    if not found:
        raise ArchiveError(f"{folder}: the checkpoint is empty: it has no array")
    order = {name: i for i, name in enumerate(paths.values())}
    return dict(sorted(found.items(), key=lambda pair: (order.get(pair[0], len(order)), pair[0])))


def _described(
    folder: Path, name: str, kind: str, zarr: dict[str, Any], sharding: str, store: Any, stored_as: str
) -> Stored:
    import tensorstore as ts

    try:
        version = zarr["zarr_format"]
        if version != (2 if kind == ".zarray" else 3):
            raise ArchiveError(f"{folder}: {name} is of zarr format {version!r}; formats 2 and 3 can be read")
        shape = tuple(map(int, zarr["shape"]))
        dtype = ts.dtype(zarr["data_type"]).numpy_dtype if kind == "zarr.json" else _dtype(zarr["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(f"{folder}: the description of {name} cannot be read: {_first_line(error)}") from error
    kvstore = {**store, "path": f"{stored_as}/"} if isinstance(store, dict) else f"{store}{stored_as}/"
    driver = "zarr" if kind == ".zarray" else "zarr3"

    def read(index: tuple[slice | int, ...]) -> np.ndarray:
        try:
            array = ts.open({"driver": driver, "kvstore": kvstore}, read=True, open=True).result()
            return np.asarray((array[index] if index else array).read().result())
        except (ValueError, OSError) as error:
            raise ArchiveError(f"{folder}: {name} cannot be read: {_first_line(error)}") from error

    return Stored(name, shape, dtype, sharding, read)


def _dtype(name: str) -> np.dtype:
    """Of zarr's name: as NumPy's, or that of a small float."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def _names(folder: Path) -> dict[str, str]:
    """What an array is stored as → its path, where the checkpoint tells; parts may have dots."""
    paths = {}
    try:
        for entry in _json(folder / "_METADATA").get("tree_metadata", {}).values():
            parts = [str(part["key"]) for part in entry["key_metadata"]]
            if entry["value_metadata"].get("value_type") not in ("None", "Dict", "List", "string"):
                paths[".".join(parts)] = "/".join(parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{folder / '_METADATA'}: is not as this version of orbax writes it: {error!r}") from error
    return paths


def _shardings(folder: Path) -> dict[str, str]:
    """What an array is stored as → how it was distributed, such as `(fsdp, -, tensor) of fsdp=2 tensor=4`."""
    try:
        stored = {base64.b64decode(name).decode(): json.loads(x) for name, x in _json(folder / "_sharding").items()}
        return {name: _told(sharding) for name, sharding in stored.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{folder / '_sharding'}: is not as this version of orbax writes it: {error!r}") from error


def _told(sharding: dict[str, Any]) -> str:
    if sharding.get("sharding_type") != "NamedSharding":
        return "one device" if sharding.get("sharding_type") == "SingleDeviceSharding" else ""
    axes = zip(sharding["axis_names"], sharding["shape"], strict=True)
    parts = ([part] if isinstance(part, str) else part or ["-"] for part in sharding["partition_spec"])
    dims = [" ".join(part) for part in parts]
    return f"({', '.join(dims)}) of {' '.join(f'{axis}={size}' for axis, size in axes)}"


def _json(path: Path) -> dict[str, Any]:
    """An object, empty where there is no file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArchiveError(f"{path}: is not readable JSON: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


# Safetensors

_SAFETENSORS = {
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def _shards(folder: Path, files: list[Path]) -> list[Path]:
    """The files that an index names, or all."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return files
    named = _json(index).get("weight_map")
    if not isinstance(named, dict):
        raise ArchiveError(f"{index}: has no weight_map from tensors to the names of files")
    names = sorted({str(name) for name in named.values()})
    if lacking := next((name for name in names if not (folder / name).is_file()), None):
        raise ArchiveError(f"{index}: names {lacking}, which is not in the folder")
    return [folder / name for name in names]


def _safetensors(files: list[Path]) -> dict[str, Stored]:
    """Paths are the tensors' own names, with slashes for dots."""
    found: dict[str, Stored] = {}
    for path in files:
        for name, (dtype, shape, start) in _header(path).items():
            found[name.replace(".", "/")] = _tensor(path, name.replace(".", "/"), dtype, shape, start)
    if not found:
        raise ArchiveError(f"{files[0].parent}: the safetensors hold no tensor")
    return found


def _header(path: Path) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
    """Tensor → type, shape and place of its first byte in the file: 8 bytes of the header's length, JSON, tensors."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ArchiveError(f"{path}: is cut short: its header should have {length:,} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, tensor in header.items():
            dtype, shape = _dtype(_SAFETENSORS[tensor["dtype"]]), tuple(map(int, tensor["shape"]))
            start, end = tensor["data_offsets"]
            if end - start != math.prod(shape) * dtype.itemsize:
                raise ArchiveError(f"{path}: {name} has {end - start:,} bytes, which is not its shape's")
            if 8 + length + end > size:
                raise ArchiveError(f"{path}: is cut short: {name} should end at byte {8 + length + end:,} of {size:,}")
            found[name] = (dtype, shape, 8 + length + start)
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"the type {error} is unknown" if isinstance(error, KeyError) else _first_line(error)
        raise ArchiveError(f"{path}: is not a safetensors file: {problem}") from error


def _tensor(path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...], start: int) -> Stored:
    def read(index: tuple[slice | int, ...]) -> np.ndarray:
        # Mapped anew for each read, so that what was read does not stay in memory.
        array = (
            np.memmap(path, np.uint8, "r", start, (math.prod(shape) * dtype.itemsize,)) if math.prod(shape) else None
        )
        whole = np.empty(shape, dtype) if array is None else array.view(dtype).reshape(shape)
        return np.array(whole[index])

    return Stored(name, shape, dtype, "", read)
