"""Verified checkpoints: orbax writes the arrays, a manifest of digests makes them count.

A checkpoint is a folder `checkpoints/STEP/`:

    params/ ema/ optimizer/   one orbax tree each, sharded on the way in, readable by plain orbax
    config.json tokenizer/    what is needed to use them
    manifest.json             next_step, whether it was scheduled, data position, validation measures, SHA-256 of every
                              file and every array

It is written under a temporary name in a background thread, the manifest last, flushed to disk, and renamed.
Array digests are taken from host memory before anything is written, so a restore proves that what is on the
devices again is what was trained.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from data.storage import sha256_of_file
from model import tree
from train.config import UserError, lower_is_better
from train.step import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every phase; errors are raised anyway

MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run, the best by the validation measure `metric`.

    One save is in flight at most; `wait` before the process ends.
    """

    def __init__(self, folder: Path, *, keep_last: int, keep_best: int, verify: bool, metric: str = "loss"):
        self.folder = folder.absolute()
        self.keep_last, self.keep_best, self.verify, self.metric = keep_last, keep_best, verify, metric
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future | None = None

    def save(
        self,
        state: TrainState,
        *,
        data: Mapping[str, Any],
        validation: Mapping[str, float] | None,
        write_extras: Callable[[Path], None],
        is_scheduled: bool = True,
    ) -> None:
        """Copy `state` to host memory and write it in the background; `write_extras(folder)` adds small files.

        `validation`: the measures on validation data, where they were taken at this step. `is_scheduled`: whether
        the step alone is why it is saved, not a signal or its measures.

        Raises the error of the previous save, if that failed.
        """
        self.wait()
        step = int(state.next_step)
        for leaf in jax.tree.leaves(state):
            leaf.copy_to_host_async()
        # np.array copies: on CPU the device buffer itself would be handed out, and the next step reuses it.
        groups = {name: jax.tree.map(np.array, part) for name, part in _groups(state).items()}
        manifest = {
            "next_step": step,
            "scheduled": is_scheduled,
            "skipped_steps": int(state.skipped_steps),
            "nonfinite_streak": int(state.nonfinite_streak),
            "validation": None if validation is None else dict(validation),
            "data": dict(data),
        }
        self._in_flight = self._thread.submit(self._write, step, groups, manifest, write_extras)

    def save_params(self, params: Any, *, write_extras: Callable[[Path], None]) -> None:
        """Write parameters that come from elsewhere as step 0, from where they lie: no copy of all is made."""
        counters = dict(next_step=0, scheduled=True, skipped_steps=0, nonfinite_streak=0)
        self._write(0, {"params": params}, counters | dict(validation=None, data=None), write_extras)

    def wait(self) -> None:
        """Until the save in flight is committed; `UserError` if it could not be written."""
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            try:
                in_flight.result()
            except (OSError, ValueError) as error:  # orbax passes a full disk on as a ValueError
                self.discard_unfinished()
                reason = str(error).splitlines()[0]
                raise UserError(f"a checkpoint could not be written to {self.folder}: {reason}") from error

    def poll(self) -> None:
        """Raise the error of a save that has failed, without waiting for one that runs."""
        if self._in_flight is not None and self._in_flight.done():
            self.wait()

    def _write(self, step: int, groups: dict, manifest: dict, write_extras: Callable[[Path], None]) -> None:
        final, temporary = self.folder / str(step), self.folder / f".tmp-{step}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        manifest["arrays"] = {
            name: {key: _describe(leaf) for key, leaf in tree.named_leaves(group).items()}
            for name, group in groups.items()
        }
        for name, group in groups.items():
            with ocp.PyTreeCheckpointer() as writer:
                writer.save(temporary / name, group)
        write_extras(temporary)
        manifest["files"] = {name: sha256_of_file(temporary / name) for name in _files(temporary)}
        write_manifest(temporary, manifest)
        for path in [*(temporary / name for name in _files(temporary)), temporary]:
            _flush(path)
        if final.exists():  # a step that did not verify, or the same step saved again
            shutil.rmtree(final)
        temporary.rename(final)
        _flush(self.folder)
        self._prune()

    def _prune(self) -> None:
        """Delete what is neither the newest nor among the newest scheduled or the best.

        Runs only after a newer one is committed.
        """
        steps = self.steps()
        best = [step for _, step in scored_steps(self.folder, self.metric)[: self.keep_best]]
        keep = {*steps[-1:], *scheduled_steps(self.folder)[-self.keep_last :], *best}
        for step in set(steps) - keep:
            doomed = self.folder / f".tmp-delete-{step}"
            (self.folder / str(step)).rename(doomed)
            shutil.rmtree(doomed)

    def steps(self) -> list[int]:
        """Committed steps, oldest first, verified or not."""
        return list_steps(self.folder)

    def best(self) -> tuple[float, int] | None:
        """The best value of the metric among the committed checkpoints, and its step."""
        self.wait()
        return next(iter(scored_steps(self.folder, self.metric)), None)

    def discard_unfinished(self) -> None:
        """Remove what a killed process left half written; only for the process that holds the run's lock."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path)

    def restore(
        self, abstract: TrainState, shardings: TrainState, report: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that verifies, placed by `shardings`, and its manifest; None if nothing was ever saved.

        Checkpoints that do not verify are named through `report` and set aside as `STEP.damaged`.
        Raises `UserError` when there are checkpoints and none verifies.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                state, manifest = self._restore_step(step, abstract, shardings)
            except DamagedError as error:
                problems.append(f"checkpoint {step} does not verify: {error}")
                report(problems[-1])
                continue
            for newer in self.steps():
                if newer > step:
                    aside = self.folder / f"{newer}.damaged"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.folder / str(newer)).rename(aside)
            return state, manifest
        if problems:
            raise UserError(
                *problems,
                f"no checkpoint in {self.folder} verifies; refusing to start from zero over a run that has some. "
                "Move the run directory away to start anew, or pass --checkpoint.verify false to trust what is there",
            )
        return None

    def _restore_step(self, step: int, abstract: TrainState, shardings: TrainState) -> tuple[TrainState, dict]:
        manifest = verified_manifest(self.folder, step, check_files=self.verify)
        if "optimizer" not in manifest["arrays"]:
            raise UserError(
                f"{self.folder.parent} holds parameters without an optimizer's state, so it cannot be continued; start "
                f"a new run from it with --init-from {self.folder.parent} --run-dir NEW"
            )
        parts, places = _groups(abstract), _groups(shardings)
        groups = {
            name: restore_group(self.folder, step, name, parts[name], places[name], manifest, self.verify)
            for name in parts
        }
        counters = {
            name: jax.device_put(np.int32(manifest[name]), getattr(shardings, name))
            for name in ("next_step", "skipped_steps", "nonfinite_streak")
        }
        state = TrainState(
            params=groups["params"],
            ema=groups.get("ema"),
            opt_state=jax.tree.unflatten(jax.tree.structure(abstract.opt_state), list(groups["optimizer"].values())),
            **counters,
        )
        return state, manifest


class DamagedError(Exception):
    """A checkpoint is not what its manifest says: the file or array, what was found, what was expected."""


def _groups(state: TrainState) -> dict[str, Any]:
    """The trees of a checkpoint; the optimizer's nested tuples become one flat dict by path."""
    flat = {f"{i:04d}.{k.replace('/', '.')}": v for i, (k, v) in enumerate(tree.named_leaves(state.opt_state).items())}
    groups = {"params": flax.serialization.to_state_dict(state.params), "optimizer": flat}
    return groups if state.ema is None else groups | {"ema": flax.serialization.to_state_dict(state.ema)}


def list_steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints in `folder`, oldest first. Only the number counts, never a clock."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and path.is_dir())


def scheduled_steps(folder: Path) -> list[int]:
    """Those of `list_steps` that were saved because of the step alone; what cannot be read counts as such."""

    def is_scheduled(step: int) -> bool:
        try:
            return read_manifest(folder, step)["scheduled"]
        except DamagedError:
            return True

    return list(filter(is_scheduled, list_steps(folder)))


def scored_steps(folder: Path, metric: str = "loss") -> list[tuple[float, int]]:
    """(value of the validation measure `metric`, step) of the checkpoints that have one, best first, then earliest."""
    scored = []
    for step in list_steps(folder):
        try:
            value = (read_manifest(folder, step)["validation"] or {}).get(metric)
        except DamagedError:
            continue
        if value is not None and math.isfinite(value):
            scored.append((value, step))
    sign = 1 if lower_is_better(metric) else -1
    return sorted(scored, key=lambda pair: (sign * pair[0], pair[1]))


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of one step; `DamagedError` when there is none to read."""
    try:
        manifest = json.loads((folder / str(step) / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest_of_json(manifest):
        raise DamagedError(f"{MANIFEST} differs from what was saved")
    if manifest["next_step"] != step:
        raise DamagedError(f"{MANIFEST} is that of step {manifest['next_step']}")
    manifest.setdefault("scheduled", True)  # older ones do not say
    if "validation_loss" in manifest:  # written before there were other measures
        loss = manifest.pop("validation_loss")
        manifest["validation"] = None if loss is None else {"loss": loss}
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its own digest in it."""
    text = json.dumps(manifest | {"sha256": _digest_of_json(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text, "utf-8")


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def verified_manifest(folder: Path, step: int, *, check_files: bool = True) -> dict[str, Any]:
    """The manifest of one step after every file it lists was found with the digest it lists."""
    manifest, where = read_manifest(folder, step), folder / str(step)
    if check_files:
        for name in sorted(set(_files(where)) - set(manifest["files"]) - {MANIFEST}):
            raise DamagedError(f"{where / name} is not in the manifest")
        for name, digest in manifest["files"].items():
            if not (where / name).is_file():
                raise DamagedError(f"{where / name} is missing")
            if (found := sha256_of_file(where / name)) != digest:
                raise DamagedError(f"{where / name} has SHA-256 {found[:12]}…, the manifest says {digest[:12]}…")
    return manifest


def restore_group(
    folder: Path,
    step: int,
    name: str,
    abstract: Any,
    shardings: Any,
    manifest: dict,
    verify: bool,
    only_common: bool = False,
) -> Any:
    """One tree of a checkpoint as arrays placed by `shardings`, each device reading only its part.

    Shapes and types must be those of `abstract`; a difference is a `UserError` (it is another model, not damage).
    `only_common`: the checkpoint may have more arrays.
    """
    saved = manifest["arrays"].get(name, {})
    wanted = tree.named_leaves(abstract)
    if not only_common and (differing := sorted(set(saved) ^ set(wanted))):
        raise UserError(f"checkpoint {folder / str(step)}: {name} differ from the experiment's: {differing[:5]}")
    for key, leaf in wanted.items():
        found, expected = (saved[key]["shape"], saved[key]["dtype"]), (list(leaf.shape), str(leaf.dtype))
        if found != expected:
            raise UserError(f"checkpoint {folder / str(step)}: {name}/{key} is {found}, the experiment has {expected}")
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    arguments = jax.tree.map(
        lambda x: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=x.sharding, dtype=x.dtype), target
    )
    try:
        with ocp.PyTreeCheckpointer() as reader:
            group = reader.restore(
                (folder / str(step) / name).absolute(),
                args=ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=only_common),
            )
    except (ValueError, OSError, KeyError) as error:
        raise DamagedError(f"{name} cannot be read ({str(error).splitlines()[0]})") from error
    if verify:
        for key, leaf in tree.named_leaves(group).items():
            if _describe(np.asarray(leaf))["sha256"] != saved[key]["sha256"]:
                raise DamagedError(f"array {name}/{key} differs from what was saved")
    return group


def _describe(array: np.ndarray) -> dict[str, Any]:
    contents = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "sha256": hashlib.sha256(contents).hexdigest(),
    }


def _files(folder: Path) -> list[str]:
    """Relative names of all files below `folder`, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
