"""The training loop: one batch, one step, and what is due at that step, always in the same order."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data.objectives import derived_target_length
from data.pipeline import Corpus, train_batches
from model import tree
from train import checkpoint, sharding
from train.config import Experiment
from train.metrics import Display, Metrics, flops_per_token, peak_flops
from train.objective import check_vocabulary, example_options, make_model
from train.run import RunDirectory
from train.step import TrainState, compile_train_step, plan_state

Evaluator = Callable[[Any], dict[str, float]]


class DivergedError(Exception):
    """Training was stopped because nothing finite came out of it any more."""


class Interrupted(Exception):
    """A signal asked the run to end; its state is saved. `number` is the signal's."""

    def __init__(self, number: int, step: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}; saved at step {step}")
        self.number = number


class Trainer:
    """A run in progress: its state on the mesh, its data position, its files."""

    def __init__(
        self,
        experiment: Experiment,
        directory: RunDirectory,
        corpus: Corpus,
        mesh: jax.sharding.Mesh,
        evaluators: Mapping[str, Evaluator],
    ):
        self.experiment, self.directory, self.corpus = experiment, directory, corpus
        self.mesh, self.evaluators = mesh, evaluators
        check_vocabulary(experiment, corpus.tokenizer)
        options = experiment.checkpoint
        self.checkpoints = checkpoint.Checkpoints(
            directory.path / "checkpoints",
            keep_last=options.keep_last,
            keep_best=options.keep_best,
            verify=options.verify,
        )
        self.checkpoints.discard_unfinished()
        self.model = make_model(experiment)
        self._signal: int | None = None
        with sharding.use(mesh, experiment.mesh.rules):
            self.state = self._start()
        devices = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
        axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        size, tokens = tree.count(self.state.params), experiment.batch_size * experiment.data.length
        print(f"{size:,} parameters on {devices}, {axes}; {tokens:,} tokens a step", flush=True)
        self.next_step = int(self.state.next_step)

    def _start(self) -> TrainState:
        """Take up the newest checkpoint, or another run's parameters, or begin."""
        experiment = self.experiment
        plan = plan_state(self.model, experiment, self.mesh)
        for note in plan.notes:
            print(f"note: {note}", flush=True)
        self.train_step = compile_train_step(self.model, plan, experiment, self.mesh)
        self.batches = train_batches(
            self.corpus.train,
            tokenizer=self.corpus.tokenizer,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            **example_options(experiment),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=experiment.data.num_workers,
            prefetch=experiment.data.prefetch,
        )
        restored = self.checkpoints.restore(
            plan.abstract, plan.shardings, lambda text: print(f"warning: {text}", flush=True)
        )
        if restored is not None:
            state, manifest = restored
            self.batches.set_state(manifest["data"])
            print(f"continuing at step {manifest['next_step']} of {experiment.num_steps}", flush=True)
            return state
        state = plan.init_state()
        if experiment.init_from:
            source = Path(experiment.init_from) / "checkpoints"
            params, fresh, unused = checkpoint.restore_common(source, state.params, plan.shardings.params)
            ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
            state = state.replace(params=params, ema=ema)
            print(f"starting from the parameters of {experiment.init_from}", flush=True)
            for what, names in (("newly initialized", fresh), ("not used", unused)):
                if names:
                    print(f"  {what}: {', '.join(names)}", flush=True)
        return state

    def train(self) -> None:
        """Until `num_steps` are done. Raises `Interrupted` or `DivergedError`; the run directory stays resumable."""
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        self.metrics = Metrics(self.directory.path, self.next_step)
        self.display = Display(self.experiment.num_steps, self.next_step)
        try:
            with sharding.use(self.mesh, self.experiment.mesh.rules):
                self._steps()
            self.checkpoints.wait()
        finally:
            self.display.close()
            self.metrics.close()
            self.batches.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _steps(self) -> None:
        experiment, placement = self.experiment, sharding.batch_sharding(self.mesh, self.experiment.mesh.rules)
        # Reading a step's metrics two steps later keeps the device busy. Several CPU devices in one process can
        # deadlock when programs with collectives overlap, so there each step is waited for.
        lag = 0 if self.mesh.devices.flat[0].platform == "cpu" and self.mesh.size > 1 else 2
        pending: deque[tuple[int, dict[str, jax.Array]]] = deque()
        clock = _Clock(self.metrics.elapsed_seconds)
        length, target_length = experiment.data.length, 0
        if experiment.model.stack == "encoder_decoder":
            target_length = experiment.data.target_length or derived_target_length(experiment.objective, length)
        flops = flops_per_token(self.state.params, experiment.model, length, target_length)
        peak = peak_flops(list(self.mesh.devices.flat), experiment.peak_tflops)

        def read(until: int) -> None:
            """Look at the metrics of finished steps, oldest first, leaving `until` of them unread."""
            while len(pending) > until:
                step, arrays = pending.popleft()
                values = {name: x.item() for name, x in jax.device_get(arrays).items()}
                self._check_finite(step, values)
                clock.step(values.pop("tokens"))
                if step % experiment.log_every == 0 or step == experiment.num_steps:
                    self._log(step, values, clock.lap(), clock.elapsed, flops, peak)

        while self.next_step < experiment.num_steps:
            batch = sharding.place_batch(next(self.batches), placement)
            self.state, metrics = self.train_step(self.state, batch)
            self.next_step += 1
            pending.append((self.next_step, metrics))
            read(until=lag)
            last = self.next_step == experiment.num_steps
            evaluate = last or self.next_step % experiment.evaluation.every == 0
            save = last or self.next_step % experiment.checkpoint.every == 0 or self._signal is not None
            if evaluate or save:
                read(until=0)
                with clock.stopped():
                    loss = self._evaluate() if evaluate and self._signal is None else None
                    if save or self._is_best(loss):
                        self._save(loss)
            self.checkpoints.poll()
            if self._signal is not None:
                self.checkpoints.wait()
                raise Interrupted(self._signal, self.next_step)

    def _check_finite(self, step: int, values: dict[str, Any]) -> None:
        streak = values.pop("nonfinite_streak")
        if streak:
            self.display.say(
                f"warning: step {step} skipped: loss {values['loss']}, gradient norm {values['grad_norm']}"
            )
        if streak >= self.experiment.max_nonfinite_steps:
            raise DivergedError(
                f"stopped at step {step}: loss or gradient was not finite in {streak} steps in a row, the first being "
                f"step {step - streak + 1} (now loss {values['loss']}, gradient norm {values['grad_norm']}); lower "
                "the learning rate or look at the data of these steps. Checkpoints up to there are kept"
            )

    def _log(self, step: int, values: dict, lap: float | None, elapsed: float, flops: float, peak: float | None):
        if lap is not None:
            values["tokens_per_second"] = lap
            if peak:
                values["mfu"] = lap * flops / peak
        self.metrics.write(step, values | {"elapsed_seconds": elapsed})
        self.display.update(step, values)

    def _evaluate(self) -> float | None:
        """Run all evaluators on the averaged parameters where there are any; the validation loss, if measured."""
        params = self.state.params if self.state.ema is None else self.state.ema
        results = {name: evaluator(params) for name, evaluator in self.evaluators.items()}
        if results:
            self.metrics.write(self.next_step, results)
        for name, result in results.items():
            numbers = "  ".join(f"{key} {value:,.4g}" for key, value in result.items())
            self.display.say(f"step {self.next_step}/{self.experiment.num_steps}  {name}: {numbers}")
        return results.get("validation", {}).get("loss")

    def _is_best(self, loss: float | None) -> bool:
        if loss is None or not math.isfinite(loss) or not self.experiment.checkpoint.keep_best:
            return False
        best = self.checkpoints.best()
        return best is None or loss < best[0]

    def _save(self, validation_loss: float | None) -> None:
        def write_extras(folder: Path) -> None:
            (folder / "config.json").write_text(self.experiment.model_dump_json(indent=2), "utf-8")
            self.corpus.tokenizer.save(folder / "tokenizer")

        data = self.batches.get_state()
        self.checkpoints.save(self.state, data=data, validation_loss=validation_loss, write_extras=write_extras)

    def _on_signal(self, number: int, _frame: Any) -> None:
        """First: save after the current step and end. Second: end now, nothing more is written."""
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        self.display.say(f"{signal.Signals(number).name}: saving after this step; again to stop at once")


class _Clock:
    """Tokens per second between log lines, without the first step's compilation, evaluations and saves."""

    def __init__(self, elapsed: float):
        self._before, self._started = elapsed, time.monotonic()
        self._lap_started: float | None = None
        self._tokens, self._pause = 0.0, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run, over all its starts."""
        return self._before + time.monotonic() - self._started

    def step(self, tokens: float) -> None:
        if self._lap_started is None:
            self._lap_started = time.monotonic()
        else:
            self._tokens += tokens

    def lap(self) -> float | None:
        """Tokens per second since the last call; None when no timed step lies between."""
        if self._lap_started is None or not self._tokens:
            return None
        now = time.monotonic()
        rate = self._tokens / max(now - self._lap_started - self._pause, 1e-9)
        self._lap_started, self._tokens, self._pause = now, 0.0, 0.0
        return rate

    @contextmanager
    def stopped(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._pause += time.monotonic() - started
