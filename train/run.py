"""A run directory: everything about one run, and the only thing that later commands need.

config.json  environment.json  metrics.jsonl  tokenizer/  checkpoints/STEP/  report/  tensorboard/
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

import model as _model  # noqa: F401  (makes XLA safe on CPU before the first device is touched)
from data import tokenizer as tokenizers
from data.storage import write_atomically
from model import tree
from train import checkpoint
from train.command_line import read_config
from train.config import Experiment, Full, Mesh, UserError, changed_fields
from train.objective import Model, make_model
from train.params import restore_params
from train.sharding import make_mesh
from train.tuning import initialize_all


@dataclass(frozen=True)
class Run:
    """A finished or running run, opened for reading."""

    directory: Path
    config: Experiment
    model: Model
    params: dict[str, Any]
    """Plain nested dict of arrays: the moving average where the experiment keeps one."""
    tokenizer: tokenizers.Tokenizer
    step: int
    """Of the checkpoint; where several are averaged, of the newest."""
    averaged: int
    """Of how many checkpoints `params` are the mean."""
    validation_loss: float | None
    """Of the checkpoint, where it was measured when that was saved; none of a mean."""

    @property
    def reads_prefixes(self) -> bool:
        """Whether a decoder has learned to see all of a prompt at once."""
        return self.config.model.stack == "decoder" and self.config.objective.kind not in ("causal_lm", "dialogue")


def load_run(run: str | Path, step: int | str = "latest") -> Run:
    """Open a run directory on one device, whatever mesh wrote it.

    `step`: a number, "latest", "best" (by the run's evaluation.metric, among the checkpoints kept), or "average:N",
    the mean of the parameters of the newest N that were scheduled, not saved on a signal or as the best. Files and
    arrays are checked against their digests; with "latest" and averages, a damaged checkpoint is passed over with a
    warning. What LoRA added is merged into the parameters.
    Raises `UserError` when the folder is no run or has no such checkpoint.

        run = load_run("runs/quickstart")
        logits = run.model.apply({"params": run.params}, run.tokenizer.encode("The ")[None])
    """
    directory = Path(run)
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} is not a run directory: it has no config.json")
    config = read_config(directory / "config.json")
    folder = directory / "checkpoints"
    model = make_model(config)
    abstract = tree.unbox(jax.eval_shape(partial(initialize_all, model, config.tuning), jax.random.key(0)))
    place = SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: place, abstract)
    steps, count = _candidates(folder, step, config.evaluation.metric)
    params, manifest = restore_params(folder, abstract, places, steps, count)
    chosen = manifest["next_step"]
    tokenizer = tokenizers.load(folder / str(chosen) / "tokenizer")
    loss = (manifest["validation"] or {}).get("loss") if count == 1 else None
    return Run(directory, config, model, params, tokenizer, chosen, count, loss)


def save_run(
    directory: str | Path, config: Experiment, params: Any, tokenizer: tokenizers.Tokenizer, beside: Sequence[Path] = ()
) -> None:
    """Make a run directory of parameters that were not trained in it: imported, or changed. It is at step 0.

    Every command opens it, and `--init-from` trains on from it. `beside`: files to keep in its folder `pretrained/`.
    Raises UserError where the directory is not empty, or the parameters are not those of the config's model.

        run = load_run("runs/a")
        save_run("runs/pruned", run.config, prune(run.params, 0.5)[0], run.tokenizer)
    """
    directory = require_empty(directory)
    config = Experiment.model_validate(config.model_dump() | {"run_dir": str(directory), "tuning": Full().model_dump()})
    expected = tree.unbox(jax.eval_shape(partial(initialize_all, make_model(config), config.tuning), jax.random.key(0)))
    shapes = [{name: tuple(x.shape) for name, x in tree.named_leaves(part).items()} for part in (expected, params)]
    if shapes[0] != shapes[1]:
        name = next(name for name in (*shapes[0], *shapes[1]) if shapes[0].get(name) != shapes[1].get(name))
        raise UserError(
            f"{name} is {shapes[1].get(name, 'missing')}, the config's model has {shapes[0].get(name, 'none')}"
        )
    opened = RunDirectory(config)
    try:
        opened.write_environment(make_mesh(Mesh()))
        tokenizer.save(directory / "tokenizer")
        for path in beside:
            (directory / "pretrained").mkdir(exist_ok=True)
            shutil.copy(path, directory / "pretrained" / path.name)

        def write_extras(where: Path) -> None:
            (where / "config.json").write_text(config.model_dump_json(indent=2), "utf-8")
            tokenizer.save(where / "tokenizer")

        checkpoints = checkpoint.Checkpoints(directory / "checkpoints", keep_last=1, keep_best=0, verify=True)
        checkpoints.save_params(params, write_extras=write_extras)
    finally:
        opened.close()


def require_empty(directory: str | Path) -> Path:
    """The directory, where nothing is there yet; else a UserError."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir() if directory.is_dir() else [directory]):
        raise UserError(f"{directory} is not empty; name another run directory")
    return directory


def _candidates(folder: Path, step: int | str, metric: str) -> tuple[list[int], int]:
    """Steps to try, in order of preference, and how many of them to average."""
    steps = checkpoint.list_steps(folder)
    if step == "latest":
        return steps[::-1], 1
    if step == "best":
        scored = checkpoint.scored_steps(folder, metric)
        if not scored:
            raise UserError(
                f"no checkpoint in {folder} has a validation {metric}; choose 'latest' or a step of {steps}"
            )
        return [scored[0][1]], 1
    if isinstance(step, str) and (average := re.fullmatch(r"average:([1-9]\d*)", step)):
        steps = checkpoint.scheduled_steps(folder)
        if (count := int(average[1])) > len(steps):
            raise UserError(f"{folder} has {len(steps)} checkpoint(s) to average, not {count}: {steps}")
        return steps[::-1], count
    if step not in steps:
        raise UserError(f"{folder} has no checkpoint {step}; it has {steps}")
    return [int(step)], 1


class RunDirectory:
    """A run directory opened for writing: locked, with its config checked or stored."""

    def __init__(self, experiment: Experiment):
        self.path = Path(experiment.directory)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: cannot make the folder {self.path}: {error.strerror}") from error
        self._lock = self._acquire()
        self._store_config(experiment)

    def _acquire(self):
        """The lock belongs to the process, so it goes with it, however it ends."""
        try:
            lock = open(self.path / ".lock", "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"run_dir: cannot write in {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(
                f"run_dir: {self.path} is being written by another process ({lock.read().strip() or 'unknown'}); "
                "wait for it, end it, or choose another --run-dir"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        return lock

    def close(self) -> None:
        self._lock.close()

    def _store_config(self, experiment: Experiment) -> None:
        path = self.path / "config.json"
        if path.exists() and (changes := changed_fields(read_config(path), experiment)):
            if self._has_progress():
                raise UserError(
                    f"run_dir: {self.path} holds a run with another config; choose another --run-dir, or --init-from "
                    "it to start a new run from its parameters. What differs:",
                    *(f"{field}: {old!r} in the run, {new!r} now" for field, old, new in changes),
                )
            shutil.rmtree(self.path / "tokenizer", ignore_errors=True)  # it belongs to the config that came to nothing
        write_atomically(path, experiment.model_dump_json(indent=2).encode())

    def _has_progress(self) -> bool:
        """Whether anything was trained here; a start that failed before that leaves nothing to protect."""
        metrics = self.path / "metrics.jsonl"
        return any((self.path / "checkpoints").glob("*")) or (metrics.exists() and metrics.stat().st_size > 0)

    def write_environment(self, mesh: jax.sharding.Mesh) -> None:
        """Versions, revision, devices: what else a number depends on."""
        packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")
        environment = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {package: version(package) for package in packages},
            "git_revision": _git_revision(),
            "devices": [str(device.device_kind) for device in jax.devices()],
            "mesh": dict(mesh.shape),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
        write_atomically(self.path / "environment.json", json.dumps(environment, indent=2).encode())


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
