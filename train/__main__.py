"""`python -m train FILE:VARIANT`: train an experiment, or continue it where it stopped."""

from __future__ import annotations

import signal
import sys

from train.command_line import parse, user_errors
from train.config import Experiment

EXIT_DIVERGED = 70
EXIT_INTERRUPTED = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: temporary failure, run the same command again


def main(argv: list[str]) -> int:
    with user_errors():
        experiment = parse(argv)
        try:
            return run(experiment)
        except KeyboardInterrupt:  # before or after the training loop, which saves by itself
            print("interrupted; the same command continues", file=sys.stderr)
            return EXIT_INTERRUPTED[signal.SIGINT]


def run(experiment: Experiment) -> int:
    """Prepare text, train, sample, report; the exit code. JAX is imported here, after the config is known good."""
    from data import tokenizer as tokenizers
    from data.pipeline import prepare
    from eval.evaluators import loss_evaluator
    from eval.generate import generate
    from eval.report import write_report
    from model.decoding import Sampling
    from train import loop, sharding
    from train.objective import check_heads
    from train.run import RunDirectory, load_run

    check_heads(experiment)
    mesh = sharding.make_mesh(experiment.mesh)
    directory = RunDirectory(experiment)
    directory.write_environment(mesh)
    saved = directory.path / "tokenizer"
    is_saved = (saved / "tokenizer.json").exists()  # written last
    tokenizer = tokenizers.load(saved) if is_saved else None
    if tokenizer is None and experiment.init_from:
        tokenizer = load_run(experiment.init_from).tokenizer
    corpus = prepare(
        experiment.data,
        tokenizer=tokenizer,
        objective=experiment.objective,
        report=lambda line: print(line, flush=True),
    )
    if not is_saved:
        corpus.tokenizer.save(saved)
    evaluators = {}
    if corpus.validation is not None:
        evaluators["validation"] = loss_evaluator(
            experiment,
            corpus.validation,
            corpus.tokenizer,
            mesh=mesh,
            max_batches=experiment.evaluation.max_batches,
        )
    trainer = loop.Trainer(experiment, directory, corpus, mesh, evaluators)
    try:
        trainer.train()
    except loop.Interrupted as error:
        print(f"{error}. The same command continues it", flush=True)
        return EXIT_INTERRUPTED[error.number]
    except loop.DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DIVERGED
    finally:
        directory.close()
    options, finished = experiment.evaluation, load_run(directory.path)
    samples = None
    if options.sample_tokens and experiment.model.stack != "encoder":
        samples = generate(
            finished.model,
            finished.params,
            finished.tokenizer,
            list(options.prompts),
            sampling=Sampling(temperature=options.temperature),
            seed=experiment.seed,
            max_new_tokens=options.sample_tokens,
            is_prefix=finished.reads_prefixes,
        )
        for sample in samples:
            print(f"\n--- sample, prompt {sample.prompt!r} ---\n{sample.prompt}{sample.text}", flush=True)
    page = write_report(directory.path, samples)
    print(f"\nrun directory: {directory.path}\nreport: {page}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
