"""The training loop: one batch, one step, and what is due at that step, always in the same order."""

from __future__ import annotations

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

from data.pipeline import Corpus, train_batches
from model import tree
from train import checkpoint, lora, sharding
from train.command_line import nearest
from train.config import Experiment, Full, LoRA, UserError, lower_is_better
from train.metrics import (
    Display,
    Metrics,
    evaluations_since_best,
    flops_per_token,
    is_out_of_patience,
    peak_flops,
    read_metrics,
)
from train.objective import check_vocabulary, example_options, make_model
from train.params import restore_common
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
        evaluation = experiment.evaluation
        if "validation" not in evaluators and (evaluation.patience or evaluation.final == "best"):
            raise UserError(
                "evaluation: patience and final=best need validation data; name some with data.validation, or hold out "
                "a part with data.held_out_fraction"
            )
        options = experiment.checkpoint
        self.checkpoints = checkpoint.Checkpoints(
            directory.path / "checkpoints",
            keep_last=options.keep_last,
            keep_best=options.keep_best,
            verify=options.verify,
            metric=experiment.evaluation.metric,
        )
        self.checkpoints.discard_unfinished()
        self.model = make_model(experiment)
        self._signal: int | None = None
        with sharding.use(mesh, experiment.mesh.rules):
            self.state = self._start()
        devices = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
        axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        size, tokens = tree.count(self.state.params), experiment.batch_size * experiment.data.length
        trained = tree.count(jax.eval_shape(self.plan.trained.select, self.state.params))
        of_which = f", {trained:,} of them trained," if trained < size else ""
        most = "at most " if experiment.is_task else ""
        print(f"{size:,} parameters{of_which} on {devices}, {axes}; {most}{tokens:,} tokens a step", flush=True)
        self.next_step = int(self.state.next_step)

    def _start(self) -> TrainState:
        """Take up the newest checkpoint, or another run's parameters, or begin."""
        experiment = self.experiment
        self.plan = plan = plan_state(self.model, experiment, self.mesh)
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
            _with_whole_average(plan.abstract, plan.abstract.params),
            _with_whole_average(plan.shardings, plan.shardings.params),
            lambda text: print(f"warning: {text}", flush=True),
        )
        if restored is not None:
            state, manifest = restored
            self.batches.set_state(manifest["data"])
            print(f"continuing at step {manifest['next_step']} of {experiment.num_steps}", flush=True)
            return state if state.ema is None else state.replace(ema=self._averaged_part(state.ema))
        state = plan.init_state()
        if experiment.init_from:
            source = Path(experiment.init_from) / "checkpoints"
            params, fresh, unused = restore_common(source, state.params, plan.shardings.params)
            ema = None if state.ema is None else jax.tree.map(jnp.copy, self._averaged_part(params))
            state = state.replace(params=params, ema=ema)
            print(f"starting from the parameters of {experiment.init_from}", flush=True)
            for what, names in (("newly initialized", fresh), ("not used", unused)):
                if names:
                    print(f"  {what}: {', '.join(names)}", flush=True)
        return state

    def _averaged_part(self, params: Any) -> Any:
        """What of `params` a moving average is kept of, where that lies."""
        return jax.device_put(self.plan.trained.select(params), self.plan.shardings.ema)

    def train(self) -> None:
        """Until `num_steps` are done. Raises `Interrupted` or `DivergedError`; the run directory stays resumable."""
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        self.metrics = Metrics(self.directory.path, self.next_step)
        self.display = Display(self.experiment.num_steps, self.next_step)
        lines, metric = read_metrics(self.directory.path), self.experiment.evaluation.metric
        self.history = [m[metric] for line in lines if metric in (m := line.get("validation", {}))]
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
        pending: deque[tuple[int, dict[str, jax.Array], float | None]] = deque()
        clock = _Clock(self.metrics.elapsed_seconds)
        flops: dict[tuple, float] = {}  # shapes of a batch → FLOPs of a token in it
        # Of frozen parameters some FLOPs are left out, and which ones is up to the compiler.
        is_full = isinstance(experiment.tuning, Full)
        peak = peak_flops(list(self.mesh.devices.flat), experiment.peak_tflops) if is_full else None

        def read(until: int) -> None:
            """Look at the metrics of finished steps, oldest first, leaving `until` of them unread."""
            while len(pending) > until:
                step, arrays, flops_of_token = pending.popleft()
                values = {name: x.item() for name, x in jax.device_get(arrays).items()}
                self._check_finite(step, values)
                clock.step(values.pop("tokens"), flops_of_token)
                if step % experiment.log_every == 0 or step == experiment.num_steps:
                    self._log(step, values, clock, peak)

        if self._lacks_evaluation():
            self._save(self._evaluate())
        while not self._is_finished():
            batch = sharding.place_batch(next(self.batches), placement)
            shapes = tuple(array.shape for array in batch.values())
            if is_new := shapes not in flops:
                read(until=0)
                flops[shapes] = self._flops_per_token(batch)
                with clock.stopped():  # it compiles, so this step is not timed
                    self.state, metrics = jax.block_until_ready(self.train_step(self.state, batch))
            else:
                self.state, metrics = self.train_step(self.state, batch)
            self.next_step += 1
            pending.append((self.next_step, metrics, None if is_new else flops[shapes]))
            read(until=lag)
            signalled = self._signal  # a later signal ends the run after the next step, which is then saved
            save = self._is_scheduled() or signalled is not None
            if self._is_evaluation_due() or save:
                read(until=0)
                with clock.stopped():
                    measured = self._evaluate() if self._is_evaluation_due() and signalled is None else None
                    if save or self._is_finished() or self._is_best(measured):
                        self._save(measured)
            self.checkpoints.poll()
            if signalled is not None:
                self.checkpoints.wait()
                raise Interrupted(signalled, self.next_step)

    def _flops_per_token(self, batch: Mapping[str, jax.Array]) -> float:
        lengths = {name: array.shape[1] for name, array in batch.items() if name.endswith("inputs")}
        length = lengths.get("encoder_inputs", lengths.get("inputs"))
        return flops_per_token(self.state.params, self.experiment.model, length, lengths.get("decoder_inputs", 0))

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

    def _log(self, step: int, values: dict[str, Any], clock: _Clock, peak: float | None) -> None:
        rates = clock.lap()
        if rates is not None:
            values["tokens_per_second"], flops = rates
            if peak:
                values["mfu"] = flops / peak
        self.metrics.write(step, values | {"elapsed_seconds": clock.elapsed})
        self.display.update(step, values)

    def _is_scheduled(self) -> bool:
        """Whether a checkpoint of this step is one that every run of the experiment has, however it went."""
        return self.next_step % self.experiment.checkpoint.every == 0 or self.next_step == self.experiment.num_steps

    def _is_evaluation_due(self) -> bool:
        return self.next_step == self.experiment.num_steps or self.next_step % self.experiment.evaluation.every == 0

    def _lacks_evaluation(self) -> bool:
        """Whether a signal came between the step that is to be evaluated and its evaluation."""
        if not self.next_step or not self.evaluators or not self._is_evaluation_due():
            return False
        lines = read_metrics(self.directory.path)
        return not any(line["step"] == self.next_step and set(self.evaluators) & set(line) for line in lines)

    def _evaluate(self) -> dict[str, float] | None:
        """Run all evaluators on the averaged parameters where there are any; the validation measures, if taken."""
        params = self.plan.averaged(self.state)
        if isinstance(self.experiment.tuning, LoRA):
            params = jax.jit(lora.merge, static_argnums=1)(params, self.experiment.tuning)
        results = {name: evaluator(params) for name, evaluator in self.evaluators.items()}
        if results:
            self.metrics.write(self.next_step, results)
        for name, result in results.items():
            numbers = "  ".join(f"{key} {value:,.4g}" for key, value in result.items())
            self.display.say(f"step {self.next_step}/{self.experiment.num_steps}  {name}: {numbers}")
        measured = results.get("validation")
        if measured is not None:
            self._check_metric(measured)
            self.history.append(measured[self.experiment.evaluation.metric])
            if self._is_out_of_patience():
                options = self.experiment.evaluation
                self.display.say(
                    f"no better {options.metric} in {options.patience} evaluation(s), so the run ends here"
                )
        return measured

    def _check_metric(self, measured: Mapping[str, float]) -> None:
        """Raise UserError, after saving what was trained, when the metric of the evaluation is not measured."""
        metric = self.experiment.evaluation.metric
        if metric in measured:
            return
        self._save(measured)
        self.checkpoints.wait()
        raise UserError(
            f"evaluation.metric: there is no validation measure '{metric}'.{nearest(metric, measured)} Measures: "
            f"{', '.join(measured)}. The same command with another one continues at step {self.next_step}"
        )

    def _is_finished(self) -> bool:
        return self.next_step >= self.experiment.num_steps or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        """Whether the evaluations so far, which metrics.jsonl remembers, end the run before its last step."""
        return is_out_of_patience(self.experiment.evaluation, self.history)

    def _is_best(self, measured: Mapping[str, float] | None) -> bool:
        if measured is None or not self.experiment.checkpoint.keep_best:
            return False
        best, metric = self.checkpoints.best(), self.experiment.evaluation.metric
        values = ([] if best is None else [best[0]]) + [measured[metric]]
        return evaluations_since_best(values, lower_is_better(metric)) == 0

    def _save(self, validation: Mapping[str, float] | None) -> None:
        def write_extras(folder: Path) -> None:
            (folder / "config.json").write_text(self.experiment.model_dump_json(indent=2), "utf-8")
            self.corpus.tokenizer.save(folder / "tokenizer")

        self.checkpoints.save(
            _with_whole_average(self.state, self.plan.averaged(self.state)),
            data=self.batches.get_state(),
            validation=validation,
            write_extras=write_extras,
            is_scheduled=self._is_scheduled(),
        )

    def _on_signal(self, number: int, _frame: Any) -> None:
        """First: save after the current step and end. Second: end now, nothing more is written."""
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        self.display.say(f"{signal.Signals(number).name}: saving after this step; again to stop at once")


def _with_whole_average(state: TrainState, average: Any) -> TrainState:
    """As a checkpoint has it: the moving average, where one is kept, has what is not trained, too."""
    return state if state.ema is None else state.replace(ema=average)


class _Clock:
    """Tokens and FLOPs per second between log lines, without compilation, evaluations and saves."""

    def __init__(self, elapsed: float):
        self._before, self._started = elapsed, time.monotonic()
        self._lap_started: float | None = None
        self._tokens, self._flops, self._pause = 0.0, 0.0, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run, over all its starts."""
        return self._before + time.monotonic() - self._started

    def step(self, tokens: float, flops_of_token: float | None) -> None:
        """A step is finished; None: it was not timed. The first one starts the clock."""
        if self._lap_started is None:
            self._lap_started, self._pause = time.monotonic(), 0.0
        elif flops_of_token is not None:
            self._tokens += tokens
            self._flops += tokens * flops_of_token

    def lap(self) -> tuple[float, float] | None:
        """Tokens and FLOPs per second since the last call; None when no timed step lies between."""
        if self._lap_started is None or not self._tokens:
            return None
        now = time.monotonic()
        seconds = max(now - self._lap_started - self._pause, 1e-9)
        rates = self._tokens / seconds, self._flops / seconds
        self._lap_started, self._tokens, self._flops, self._pause = now, 0.0, 0.0, 0.0
        return rates

    @contextmanager
    def stopped(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._pause += time.monotonic() - started
