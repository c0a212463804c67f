"""`python -m train FILE:VARIANT`: train an experiment, or continue it where it stopped."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from train.command_line import load_loss, parse, user_errors
from train.config import Experiment
from train.seeds import run_seeds, take_seeds

if TYPE_CHECKING:
    import jax

    from data.pipeline import Corpus
    from eval.completion import Completion
    from train.loop import Evaluator
    from train.run import Run

EXIT_DIVERGED = 70
EXIT_INTERRUPTED = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: temporary failure, run the same command again


def main(argv: list[str]) -> int:
    with user_errors():
        argv, seeds = take_seeds(argv)
        experiment = parse(argv)
        try:
            return run(experiment) if seeds is None else run_seeds(experiment, seeds, run)
        except KeyboardInterrupt:  # before or after the training loop, which saves by itself
            print("interrupted; the same command continues", file=sys.stderr)
            return EXIT_INTERRUPTED[signal.SIGINT]


def run(experiment: Experiment) -> int:
    """Prepare data, train, score, report; the exit code. JAX is imported here, after the config is known good."""
    from train import loop, sharding
    from train.objective import check_heads
    from train.run import RunDirectory

    check_heads(experiment)
    if experiment.loss.function:
        load_loss(experiment.loss.function)
    mesh = sharding.make_mesh(experiment.mesh)
    directory = RunDirectory(experiment)
    try:
        directory.write_environment(mesh)
        corpus = _prepare(experiment, directory.path)
        loop.Trainer(experiment, directory, corpus, mesh, _evaluators(experiment, corpus, mesh)).train()
    except loop.Interrupted as error:
        print(f"{error}. The same command continues it", flush=True)
        return EXIT_INTERRUPTED[error.number]
    except loop.DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    finally:
        directory.close()
    _finish(experiment, directory.path)
    return 0


def _prepare(experiment: Experiment, directory: Path) -> Corpus:
    """The data, with the run's tokenizer, that of the run it starts from, or a new one."""
    from data import tokenizer as tokenizers
    from data.pipeline import prepare
    from train.params import restore_tokenizer

    saved = directory / "tokenizer"
    is_saved = (saved / "tokenizer.json").exists()  # written last
    tokenizer = tokenizers.load(saved) if is_saved else None
    if tokenizer is None and experiment.init_from:
        tokenizer = restore_tokenizer(Path(experiment.init_from) / "checkpoints")
    corpus = prepare(
        experiment.data,
        tokenizer=tokenizer,
        objective=experiment.objective,
        stack=experiment.model.stack,
        report=lambda line: print(line, flush=True),
    )
    if not is_saved:
        corpus.tokenizer.save(saved)
    return corpus


def _evaluators(experiment: Experiment, corpus: Corpus, mesh: jax.sharding.Mesh) -> dict[str, Evaluator]:
    from eval.evaluators import loss_evaluator

    if corpus.validation is None:
        return {}
    evaluator = loss_evaluator
    if experiment.is_task:
        from eval.tasks import task_evaluator as evaluator
    limit = experiment.evaluation.max_batches
    return {"validation": evaluator(experiment, corpus.validation, corpus.tokenizer, mesh=mesh, max_batches=limit)}


def _finish(experiment: Experiment, directory: Path) -> None:
    """Scores of a task, or samples of a model that writes; and the report."""
    from eval.report import write_report
    from train.run import load_run

    finished, samples = load_run(directory, experiment.evaluation.final_step), None
    if experiment.is_task:
        held_out = experiment.data.validation or experiment.data.held_out_fraction
        for split in ["validation"] * bool(held_out) + ["test"] * bool(experiment.data.test):
            _score(finished, split)
    elif experiment.evaluation.sample_tokens and experiment.model.stack != "encoder":
        samples = _samples(finished)
    page = write_report(directory, samples)
    print(f"\nrun directory: {directory}\nreport: {page}", flush=True)


def _score(run: Run, split: str) -> None:
    """Write and print the scores of a task; of texts, also the first three."""
    from eval import results
    from eval.tasks import write_scores

    result = write_scores(run, split, checkpoint=run.config.evaluation.final_step)
    print(f"\n{results.table(result)}", flush=True)
    if run.config.objective.kind == "text_to_text":
        _, made = results.read(results.folder_of(run, split))
        for text in made[:3]:
            print(f"\n--- {text['source']}\nexpected:  {' | '.join(text['expected'])}\npredicted: {text['predicted']}")


def _samples(run: Run) -> list[Completion]:
    from eval.completion import generate
    from model.decoding import Sampling

    options = run.config.evaluation
    samples = generate(
        run.model,
        run.params,
        run.tokenizer,
        list(options.prompts),
        sampling=Sampling(temperature=options.temperature),
        seed=run.config.seed,
        max_new_tokens=options.sample_tokens,
        is_prefix=run.reads_prefixes,
    )
    for sample in samples:
        print(f"\n--- sample, prompt {sample.prompt!r} ---\n{sample.prompt}{sample.text}", flush=True)
    return samples


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
